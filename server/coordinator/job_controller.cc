#include "server/coordinator/job_controller.h"

#include <glog/logging.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

// How often a held call looks whether its caller is still there.
constexpr absl::Duration kLook = absl::Milliseconds(200);
// Seconds between lines about strangers.
constexpr double kStrangerNotice = 1;

}  // namespace

absl::StatusOr<std::unique_ptr<JobController>> JobController::Create(RunOptions options,
                                                                     Store& store) {
  RETURN_IF_ERROR(CompleteRunOptions(options));
  auto controller =
      std::unique_ptr<JobController>(new JobController(std::move(options), store));
  absl::MutexLock lock(&controller->mutex_);
  RETURN_IF_ERROR(controller->life_.Begin());
  const RunOptions& kept = controller->options_;
  if (kept.mode == v1::RUN_MODE_TRAIN) {
    ASSIGN_OR_RETURN(std::vector<v1::CheckpointStatus> present,
                     DescribeCheckpoints(kept.checkpoint_dir));
    controller->checkpoints_.set_present(std::move(present));
  }
  if (kept.adoption.has_value()) {
    controller->Advance();
    controller->record_.Restore(kept.adoption->evaluations);
    for (const v1::StoredEvaluation& kept_one :
         kept.adoption->evaluations.evaluations()) {
      if (kept_one.split() != v1::SPLIT_VALIDATION) continue;
      controller->checkpoints_.Evaluated(kept_one.step(), kept_one.perplexity());
    }
  }
  controller->committer_ = std::thread([&parts = *controller] { parts.Commit(); });
  return controller;
}

JobController::~JobController() {
  {
    absl::MutexLock lock(&mutex_);
    ends_ = true;
  }
  if (committer_.joinable()) committer_.join();
}

JobController::JobController(RunOptions options, Store& store)
    : options_(std::move(options)),
      progress_(options_.print),
      life_(options_, store, progress_),
      record_(progress_),
      last_tick_(options_.now()) {}

absl::StatusOr<v1::RegisterResponse> JobController::Register(
    const v1::RegisterRequest& request) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const MemberRecord* const member, life_.Join(request));
  v1::RegisterResponse response;
  response.set_member(member->id);
  response.set_incarnation(member->incarnation);
  response.set_heartbeat_ms(absl::ToInt64Milliseconds(options_.heartbeat));
  response.set_lease_ms(absl::ToInt64Milliseconds(options_.lease));
  Advance();
  life_.PrintWaiting();
  return response;
}

absl::StatusOr<v1::HeartbeatResponse> JobController::Heartbeat(
    const v1::HeartbeatRequest& request, const Cancelled& cancelled) {
  absl::MutexLock lock(&mutex_);
  life_.Welcome(request, CheckpointStep());
  ASSIGN_OR_RETURN(MemberRecord * member, Sender(request));
  if (member != nullptr) {
    const bool worked = TakeHeartbeat(request, options_.now(), *member);
    // Servers work for workers alone, so one that does shows that those live; an evaluation
    // is reported only when it is over.
    if (worked && member->registration.kind() == v1::MEMBER_KIND_SERVER) {
      record_.NoteSign(options_.now());
    }
    if (request.finished_generation() == life_.generation() && !member->finished &&
        life_.phase() == v1::PHASE_RUNNING) {
      NoteFinished(request.member());
    }
    if (member->registration.kind() == v1::MEMBER_KIND_WORKER) {
      for (const v1::LostServer& lost : request.lost()) {
        life_.LoseServer(lost.server(), request.member(), lost.cause(),
                         request.generation());
      }
    }
    Advance();
    RETURN_IF_ERROR(Hold(cancelled, absl::Now() + options_.heartbeat, [&] {
      return request.seen_phase() != life_.PhaseFor(request.member()) ||
             request.seen_generation() != life_.generation() ||
             request.seen_upcoming() != life_.upcoming();
    }));
    // Much may have happened meanwhile.
    ASSIGN_OR_RETURN(member, Sender(request));
  }
  v1::HeartbeatResponse response;
  response.set_coordinator(life_.coordinator());
  if (member == nullptr) {
    *response.mutable_state() = life_.Farewell();
    return response;
  }
  if (life_.over()) member->saw_end = true;
  *response.mutable_state() = life_.StateFor(request.member());
  response.mutable_state()->set_checkpoint_step(CheckpointStep());
  return response;
}

absl::StatusOr<MemberRecord*> JobController::Sender(const v1::HeartbeatRequest& request) {
  if (life_.members().Released(request.member(), request.incarnation())) return nullptr;
  MemberRecord* const member = life_.members().SenderOf(request);
  if (member == nullptr || member->incarnation != request.incarnation()) {
    return absl::NotFoundError(absl::StrCat(
        request.member(), " isn't a member of this cluster",
        life_.failure().empty() ? " (any more)" : absl::StrCat(": ", life_.failure())));
  }
  return member;
}

void JobController::Leave(const v1::LeaveRequest& request) {
  absl::MutexLock lock(&mutex_);
  const MemberRecord* member = life_.members().SenderOf(request);
  if (member == nullptr || member->incarnation != request.incarnation()) return;
  LOG(INFO) << Describe(*member) << " leaves";
  life_.Lose(request.member(), "left before the job was finished");
  Advance();
}

v1::FailJobResponse JobController::FailJob(const v1::FailJobRequest& request) {
  absl::MutexLock lock(&mutex_);
  v1::FailJobResponse response;
  response.set_failure(life_.failure());
  if (life_.members().SenderOf(request) == nullptr) {
    LOG_EVERY_T(WARNING, kStrangerNotice)
        << "ignored, from a stranger: " << request.cause();
  } else if (request.generation() == life_.generation()) {
    life_.FailBy(request.member(), request.cause(), request.peer_lost());
    Advance();
  } else {
    LOG(INFO) << "of generation " << request.generation()
              << ", which is over: " << request.cause();
  }
  response.set_generation(life_.generation());
  return response;
}

absl::StatusOr<v1::ReportStepResponse> JobController::ReportStep(
    const v1::ReportStepRequest& request) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(TakeReport(request, v1::MEMBER_KIND_WORKER));
  const uint64_t before = record_.steps_taken();
  const absl::Status status = record_.AddStep(request, options_.now());
  if (absl::IsAborted(status)) life_.Fail(std::string(status.message()));
  RETURN_IF_ERROR(status);
  life_.NoteStep(record_.steps_taken());
  if (request.last_cut() > 0) NoteCut(request.last_cut());
  if (record_.steps_taken() > before) {
    VLOG(1) << "step " << record_.steps_taken() << " is complete"
            << (checkpoints_.under_way() ? ", while a checkpoint is under way" : "");
  }
  v1::ReportStepResponse response;
  response.set_cut_under_way(checkpoints_.under_way());
  if (const std::optional<uint64_t> cut = record_.requested_cut()) {
    response.set_cut(true);
    response.set_cut_step(*cut);
  }
  if (const std::optional<uint64_t> handover = record_.requested_handover()) {
    response.set_handover(true);
    response.set_handover_step(*handover);
  }
  return response;
}

absl::StatusOr<v1::ReportEvaluationResponse> JobController::ReportEvaluation(
    const v1::ReportEvaluationRequest& request, const Cancelled& cancelled) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(TakeReport(request, v1::MEMBER_KIND_WORKER));
  v1::ReportEvaluationResponse response;
  if (const std::optional<double> kept =
          record_.KeptPerplexity(request.step(), request.split())) {
    response.set_perplexity(*kept);
    return response;
  }
  ASSIGN_OR_RETURN(const ReplicaJoin* const join,
                   record_.AddEvaluation(request, options_.now()));
  if (join->complete()) {
    // Before anybody is told that it is complete, and so doesn't report it again.
    life_.Keep(record_.evaluations());
    if (request.split() == v1::SPLIT_VALIDATION) {
      checkpoints_.Evaluated(request.step(), join->perplexity());
    }
  }
  RETURN_IF_ERROR(HoldReport(cancelled, [join] { return join->complete(); }));
  response.set_perplexity(join->perplexity());
  return response;
}

absl::Status JobController::ReportShardFile(const v1::ReportShardFileRequest& request) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(TakeReport(request, v1::MEMBER_KIND_SERVER));
  const absl::Status status = checkpoints_.AddShard(request, options_.now());
  if (absl::IsDataLoss(status)) life_.Fail(std::string(status.message()));
  RETURN_IF_ERROR(status);
  NoteCut(request.step());
  return absl::OkStatus();
}

void JobController::NoteCut(uint64_t steps) {
  if (!checkpoints_.BeginCut(steps, options_.now())) return;
  record_.CutBegun(steps);
  last_cut_ = options_.now();
}

absl::StatusOr<v1::AwaitCheckpointResponse> JobController::AwaitCheckpoint(
    const v1::AwaitCheckpointRequest& request, const Cancelled& cancelled) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(TakeReport(request, v1::MEMBER_KIND_WORKER));
  NoteCut(request.step());
  RETURN_IF_ERROR(HoldReport(
      cancelled, [&] { return checkpoints_.Find(request.step()) != nullptr; }));
  v1::AwaitCheckpointResponse response;
  response.set_folder(checkpoints_.Find(request.step())->folder());
  response.set_digest(checkpoints_.Find(request.step())->digest());
  return response;
}

absl::StatusOr<v1::AwaitHandoverResponse> JobController::AwaitHandover(
    const v1::AwaitHandoverRequest& request, const Cancelled& cancelled) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(TakeReport(request, v1::MEMBER_KIND_WORKER));
  life_.AwaitHandover(request.member(), request.step());
  Advance();
  if (life_.generation() != request.generation()) {
    return IsOver(request.generation());
  }
  RETURN_IF_ERROR(HoldReport(cancelled, [&] { return life_.MayGoOn(request.step()); }));
  return v1::AwaitHandoverResponse();
}

absl::Status JobController::FinishWork(const v1::FinishWorkRequest& request) {
  absl::MutexLock lock(&mutex_);
  if (life_.phase() == v1::PHASE_FINISHED) return absl::OkStatus();
  RETURN_IF_ERROR(TakeReport(request, v1::MEMBER_KIND_WORKER));
  NoteFinished(request.member());
  return absl::OkStatus();
}

void JobController::NoteFinished(const std::string& worker) {
  life_.FinishWork(worker);
  if (life_.phase() != v1::PHASE_FINISHED) return;
  for (const std::string& line : SummaryLines(options_.job.name(), Summary())) {
    progress_.Line(line);
  }
}

uint64_t JobController::CheckpointStep() const {
  return checkpoints_.present().empty() ? 0 : checkpoints_.present().back().step();
}

v1::GetClusterStatusResponse JobController::GetClusterStatus() {
  absl::MutexLock lock(&mutex_);
  v1::GetClusterStatusResponse response;
  *response.mutable_state() = life_.State();
  for (v1::ReplicaAssignment& replica : *response.mutable_state()->mutable_replicas()) {
    replica.clear_nonce();
  }
  for (v1::MemberStatus& status : life_.MemberStatuses()) {
    *response.add_members() = std::move(status);
  }
  *response.mutable_progress() = progress_.progress();
  const std::vector<v1::CheckpointStatus>& present = checkpoints_.present();
  response.mutable_checkpoints()->Assign(present.begin(), present.end());
  if (std::optional<v1::CutStatus> cut = checkpoints_.UnderWay(options_.now())) {
    *response.mutable_cut() = *std::move(cut);
  }
  return response;
}

absl::StatusOr<v1::TakeCheckpointResponse> JobController::TakeCheckpoint(
    const Cancelled& cancelled) {
  absl::MutexLock lock(&mutex_);
  if (options_.mode != v1::RUN_MODE_TRAIN || life_.phase() != v1::PHASE_RUNNING) {
    return absl::FailedPreconditionError("the job isn't training now");
  }
  const uint64_t steps = record_.WishCut();
  RequestCutIfDue();
  // The last step ends with a checkpoint in any case.
  const auto found = [&]() -> const v1::CheckpointStatus* {
    const uint64_t total = progress_.progress().total_steps();
    const auto& present = checkpoints_.present();
    if (present.empty()) return nullptr;
    const uint64_t last = present.back().step();
    return last >= steps || (total > 0 && last >= total) ? &present.back() : nullptr;
  };
  const absl::Status held = HoldReport(cancelled, [&] { return found() != nullptr; });
  // The same commit may have ended the generation.
  if (found() == nullptr) RETURN_IF_ERROR(held);
  v1::TakeCheckpointResponse response;
  *response.mutable_checkpoint() = *found();
  return response;
}

absl::StatusOr<v1::ScaleResponse> JobController::Scale(const v1::ScaleRequest& request) {
  absl::MutexLock lock(&mutex_);
  v1::ScaleResponse response;
  ASSIGN_OR_RETURN(*response.mutable_plan(), life_.Scale(request));
  Advance();
  return response;
}

void JobController::RequestCutIfDue() {
  if (life_.phase() != v1::PHASE_RUNNING || checkpoints_.under_way()) return;
  const double minutes = options_.job.checkpointing().every_minutes();
  const bool overdue =
      minutes > 0 && options_.now() - last_cut_ >= absl::Minutes(minutes);
  if (overdue || record_.wishes_cut()) record_.RequestCut();
}

void JobController::Tick() {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = options_.now();
  // A coordinator that was stopped, or that waited for its disk, can't say who was
  // silent.
  const absl::Duration pause = now - std::exchange(last_tick_, now);
  if (pause > options_.lease / 2) {
    life_.Excuse(pause);
    record_.Excuse(pause);
    checkpoints_.Excuse(pause);
  }
  if (life_.over()) return;

  for (const auto& [id, how] :
       life_.members().Silent(now, options_.lease, options_.rejoin_timeout)) {
    life_.Lose(id, how);
  }
  // What was reported in a generation that has just ended mustn't be judged.
  Advance();
  for (const std::string& overdue :
       {record_.Overdue(now, options_.report_timeout),
        checkpoints_.Overdue(now, options_.report_timeout), life_.Overdue()}) {
    if (!overdue.empty()) life_.Fail(overdue);
  }
  if (const absl::Duration silence = record_.Silence(now);
      life_.phase() == v1::PHASE_RUNNING && silence >= options_.report_timeout) {
    life_.Stall(absl::StrCat("no step, evaluation or checkpoint for ",
                             FormatTimeSpan(silence), "; ",
                             life_.members().WhatWorkersDo(),
                             " (if one takes that long, raise --report_timeout_s)"));
  }
  Advance();
  if (life_.NeedsRestorePoint() && !committing_) {
    FindRestorePointOfGeneration();
    Advance();
  }
  RequestCutIfDue();
  if (life_.EndVainHandover()) record_.CancelHandover();
  life_.PrintWaiting();
}

void JobController::Stop(const std::string& cause) {
  absl::MutexLock lock(&mutex_);
  life_.Stop(cause);
}

absl::Status JobController::WaitUntilOver() {
  const auto all_know = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!life_.over()) return false;
    const auto& members = life_.members().members();
    // Looked at again with each tick.
    return options_.now() - life_.over_since() >= options_.lease ||
           std::all_of(members.begin(), members.end(),
                       [](const auto& entry) { return entry.second.saw_end; });
  };
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&all_know));
  return life_.phase() == v1::PHASE_FINISHED ? absl::OkStatus()
                                             : absl::AbortedError(life_.failure());
}

RunSummary JobController::summary() {
  absl::MutexLock lock(&mutex_);
  return Summary();
}

template <typename Report>
absl::Status JobController::TakeReport(const Report& report, v1::MemberKind kind) {
  RETURN_IF_ERROR(life_.CheckReporter(life_.members().SenderOf(report), report.member(),
                                      kind, report.generation()));
  record_.NoteSign(options_.now());
  return absl::OkStatus();
}

absl::Status JobController::Hold(const Cancelled& cancelled, absl::Time deadline,
                                 const std::function<bool()>& done) {
  const absl::Condition condition(&done);
  bool waiting = true;
  while (waiting) {
    const absl::Time look = std::min(deadline, absl::Now() + kLook);
    waiting = !mutex_.AwaitWithDeadline(condition, look) && look < deadline;
    if (cancelled()) return absl::CancelledError("the member gave up the call");
  }
  return absl::OkStatus();
}

absl::Status JobController::HoldReport(const Cancelled& cancelled,
                                       const std::function<bool()>& done) {
  const uint64_t generation = life_.generation();
  const auto of_the_past = [&] { return recorded_generation_ != generation; };
  RETURN_IF_ERROR(Hold(cancelled, absl::InfiniteFuture(),
                       [&] { return of_the_past() || done() || life_.over(); }));
  if (of_the_past()) {
    return IsOver(generation);
  }
  if (done()) return absl::OkStatus();
  return life_.phase() == v1::PHASE_FAILED
             ? absl::AbortedError(life_.failure())
             : absl::FailedPreconditionError("the job is finished");
}

absl::Status JobController::IsOver(uint64_t generation) const {
  return absl::AbortedError(
      absl::StrCat("generation ", generation, " is over: ", life_.recovery()));
}

void JobController::Advance() {
  ForgetIfOver();
  life_.Advance();
  // Servers give away what they still write.
  if (life_.TryHandOver(checkpoints_.under_way())) record_.CancelHandover();
  ForgetIfOver();
  if (life_.ReadyToHandOver() && !checkpoints_.under_way() && !record_.wishes_cut()) {
    record_.RequestHandover();
  }
  if (life_.phase() != v1::PHASE_RUNNING) return;
  if (recorded_generation_ != 0) {
    checkpoints_.KeepServers(life_.layout());
    return;
  }
  recorded_generation_ = life_.generation();
  const Layout& layout = life_.layout();
  // A generation that was adopted may have come further than where it began.
  record_.Begin(life_.generation(), layout.replicas,
                std::max(life_.start_step(), CheckpointStep()),
                layout.data.train_tokens(), options_.now());
  checkpoints_.Begin(layout, life_.generation());
  last_cut_ = options_.now();
}

void JobController::ForgetIfOver() {
  if (recorded_generation_ == 0 || recorded_generation_ == life_.generation()) return;
  recorded_generation_ = 0;
  record_.End();
  checkpoints_.End();
}

void JobController::Commit() {
  absl::MutexLock lock(&mutex_);
  const auto due = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return ends_ || checkpoints_.ready();
  };
  while (true) {
    mutex_.Await(absl::Condition(&due));
    if (ends_) return;
    CommitReady();
  }
}

void JobController::CommitReady() {
  const std::optional<uint64_t> step = checkpoints_.TakeReady();
  if (!step.has_value()) return;
  const uint64_t generation = recorded_generation_;
  v1::Manifest manifest = checkpoints_.MakeManifest(*step);
  const absl::Time begun = checkpoints_.BegunAt(*step);

  // Heartbeats go on while the disk works. A generation that opens meanwhile begins with this
  // checkpoint.
  committing_ = true;
  mutex_.Unlock();
  absl::StatusOr<std::vector<v1::CheckpointStatus>> present =
      CommitCheckpoint(options_.checkpoint_dir, std::move(manifest),
                       std::max(1, options_.job.checkpointing().keep_last()));
  mutex_.Lock();
  committing_ = false;
  if (!present.ok()) {
    life_.Fail(absl::StrCat("the checkpoint of step ", *step,
                            " failed: ", std::string(present.status().message())));
    return;
  }
  checkpoints_.Committed(*step, *std::move(present));
  progress_.Checkpoint(*checkpoints_.Find(*step), options_.now() - begun);
  if (recorded_generation_ != generation) return;
  RequestCutIfDue();
  // A handover may have waited for it.
  Advance();
}

void JobController::FindRestorePointOfGeneration() {
  const uint64_t generation = life_.generation();
  mutex_.Unlock();
  const absl::Status cleared = RemoveUncommitted(options_.checkpoint_dir);
  absl::StatusOr<RestorePoint> last = FindRestorePoint(options_.checkpoint_dir);
  mutex_.Lock();
  // Members were heard meanwhile, so this was no pause.
  last_tick_ = options_.now();
  if (life_.generation() != generation || life_.over()) return;
  if (!cleared.ok()) {
    LOG(WARNING) << "cannot delete what an unfinished cut left: " << cleared.message();
  }
  if (last.ok()) {
    life_.SetRestorePoint(*std::move(last));
  } else if (absl::IsNotFound(last.status())) {
    life_.SetRestorePoint(options_.restore);
  } else {
    life_.Fail(absl::StrCat("cannot recover: ", std::string(last.status().message())));
  }
}

RunSummary JobController::Summary() const {
  RunSummary summary;
  summary.phase = life_.phase();
  summary.failure = life_.failure();
  summary.test_perplexity = progress_.progress().test_perplexity();
  summary.validation_perplexity = progress_.progress().validation_perplexity();
  if (options_.restore.has_value()) {
    summary.digest = options_.restore->manifest.digest();
    summary.checkpoint = options_.restore->folder;
  }
  if (!checkpoints_.present().empty()) {
    summary.digest = checkpoints_.present().back().digest();
    summary.checkpoint = checkpoints_.present().back().folder();
  }
  summary.balance = record_.balance();
  summary.step = progress_.progress().step();
  summary.words_per_second = progress_.mean_words_per_second();
  if (life_.running_since() != absl::InfiniteFuture()) {
    const absl::Time end = std::min(life_.over_since(), options_.now());
    summary.seconds = absl::ToDoubleSeconds(end - life_.running_since());
  }
  return summary;
}

}  // namespace moe
