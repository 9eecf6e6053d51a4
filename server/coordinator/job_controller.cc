#include "server/coordinator/job_controller.h"

#include <glog/logging.h>
#include <google/protobuf/text_format.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/manifest.h"
#include "common/job/model_plan.h"
#include "common/net/channel.h"
#include "server/coordinator/placement.h"

namespace moe {
namespace {

// How often a held call looks whether its caller is still there.
constexpr absl::Duration kLook = absl::Milliseconds(200);

double Work(const v1::MemberTimes& times) { return times.computing() + times.moving(); }

// "computing"
std::string Doing(const MemberRecord& member) {
  return member.waiting_for.empty() ? "computing"
                                    : absl::StrCat("waiting for ", member.waiting_for);
}

absl::StatusOr<uint64_t> GetCounter(Store& store, const std::string& key) {
  ASSIGN_OR_RETURN(const std::optional<Store::Entry> entry, store.Get(key));
  uint64_t count = 0;
  if (entry.has_value() && !absl::SimpleAtoi(entry->value, &count)) {
    return absl::DataLossError(absl::StrCat("state key ", key, " holds no number"));
  }
  return count;
}

}  // namespace

absl::StatusOr<std::unique_ptr<JobController>> JobController::Create(Options options,
                                                                     Store& store) {
  if (options.servers < 1)
    return absl::InvalidArgumentError("--servers must be at least 1");
  if (options.workers < 1)
    return absl::InvalidArgumentError("--workers must be at least 1");
  if (options.workers > options.job.training().replicas()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--workers is ", options.workers, ", but the job's training.replicas is ",
        options.job.training().replicas(), ", and a worker owns at least one replica"));
  }
  if (options.heartbeat <= absl::ZeroDuration() ||
      options.lease < 2 * options.heartbeat) {
    return absl::InvalidArgumentError(
        "--heartbeat_ms must be positive, and --lease_ms at least twice as long");
  }
  if (options.mode == v1::RUN_MODE_EVALUATE && !options.restore.has_value()) {
    return absl::InvalidArgumentError(
        "there is no checkpoint to evaluate; give --checkpoint");
  }
  if (options.restore.has_value()) {
    RETURN_IF_ERROR(CheckSameJob(*options.restore, options.job));
    if (options.job.model().vocabulary() == 0) {
      options.job.mutable_model()->set_vocabulary(
          options.restore->job.model().vocabulary());
    }
  }
  if (!options.now) options.now = [] { return absl::Now(); };
  if (!options.print) options.print = [](const std::string&) {};

  auto controller =
      std::unique_ptr<JobController>(new JobController(std::move(options), store));
  absl::MutexLock lock(&controller->mutex_);
  const Options& kept = controller->options_;
  ASSIGN_OR_RETURN(uint64_t generation, GetCounter(store, "job/generation"));
  if (kept.restore.has_value()) {
    generation = std::max(generation, kept.restore->manifest.generation());
  }
  controller->generation_ = generation + 1;
  RETURN_IF_ERROR(controller->Put("job/generation", absl::StrCat(generation + 1)));
  RETURN_IF_ERROR(controller->Put("job/name", kept.job.name()));
  RETURN_IF_ERROR(controller->Put("job/phase", v1::Phase_Name(v1::PHASE_WAITING)));
  if (kept.mode == v1::RUN_MODE_TRAIN) {
    ASSIGN_OR_RETURN(controller->checkpoints_, DescribeCheckpoints(kept.checkpoint_dir));
  }
  if (kept.restore.has_value()) {
    controller->progress_.Line(
        absl::StrCat("starting from ", kept.restore->folder, "  digest ",
                     kept.restore->manifest.digest().substr(0, 16)));
  }
  controller->PrintWaiting();
  return controller;
}

JobController::JobController(Options options, Store& store)
    : options_(std::move(options)),
      store_(store),
      job_(options_.job),
      members_({.servers = options_.servers,
                .workers = options_.workers,
                .allow_mixed_numerics = options_.job.allow_mixed_numerics(),
                .vocabulary = options_.job.model().vocabulary(),
                .data_sha256 = options_.restore.has_value()
                                   ? options_.restore->manifest.data_sha256()
                                   : ""}),
      last_tick_(options_.now()),
      progress_(options_.print) {}

absl::StatusOr<v1::RegisterResponse> JobController::Register(
    const v1::RegisterRequest& request) {
  absl::MutexLock lock(&mutex_);
  const std::string id = MemberId(request.kind(), request.name());
  bool repeated = false;
  if (absl::Status refusal = members_.Check(request, &repeated); !refusal.ok()) {
    LOG(WARNING) << "refused: " << refusal.message();
    return refusal;
  }
  if (over()) {
    return absl::FailedPreconditionError(
        phase_ == v1::PHASE_FINISHED
            ? absl::StrCat(id, " comes too late: the job is finished")
            : absl::StrCat(id, " comes too late: the job failed: ", failure_));
  }
  if (!repeated) {
    const std::string key = absl::StrCat("members/", id);
    ASSIGN_OR_RETURN(const uint64_t incarnation, GetCounter(store_, key));
    RETURN_IF_ERROR(Put(key, absl::StrCat(incarnation + 1)));
    const MemberRecord& member = members_.Add(request, incarnation + 1, options_.now());
    LOG(INFO) << Describe(member) << " has joined"
              << (request.address().empty() ? "" : " at ") << request.address();
    Advance();
    PrintWaiting();
  }
  v1::RegisterResponse response;
  response.set_member(id);
  response.set_incarnation(members_.Find(id)->incarnation);
  response.set_heartbeat_ms(absl::ToInt64Milliseconds(options_.heartbeat));
  response.set_lease_ms(absl::ToInt64Milliseconds(options_.lease));
  return response;
}

absl::StatusOr<v1::HeartbeatResponse> JobController::Heartbeat(
    const v1::HeartbeatRequest& request, const Cancelled& cancelled) {
  absl::MutexLock lock(&mutex_);
  MemberRecord* member = members_.Find(request.member());
  if (member == nullptr || member->incarnation != request.incarnation()) {
    return absl::NotFoundError(
        absl::StrCat(request.member(), " isn't a member of this cluster",
                     failure_.empty() ? " (any more)" : absl::StrCat(": ", failure_)));
  }
  member->last_heartbeat = options_.now();
  // A heartbeat may overtake an older one.
  member->ready_generation =
      std::max(member->ready_generation, request.ready_generation());
  member->waiting_for = request.waiting_for();
  // Servers work for workers alone, so one that does shows that those live; an evaluation
  // is reported only when it is over.
  if (member->registration.kind() == v1::MEMBER_KIND_SERVER &&
      Work(request.times()) > Work(member->times)) {
    last_progress_ = options_.now();
  }
  member->times = request.times();
  Advance();

  const absl::Time deadline = absl::Now() + options_.heartbeat;
  while (request.seen_phase() == phase_ && request.seen_generation() == generation_) {
    if (cancelled()) return absl::CancelledError("the member gave up the call");
    const absl::Time look = std::min(deadline, absl::Now() + kLook);
    if (changed_.WaitWithDeadline(&mutex_, look) && look == deadline) break;
  }
  if (cancelled()) return absl::CancelledError("the member gave up the call");

  if (over()) {
    if (member = members_.Find(request.member()); member != nullptr) {
      member->saw_end = true;
      changed_.SignalAll();
    }
  }
  v1::HeartbeatResponse response;
  *response.mutable_state() = State();
  return response;
}

void JobController::Leave(const v1::LeaveRequest& request) {
  absl::MutexLock lock(&mutex_);
  const MemberRecord* member = members_.Find(request.member());
  if (member == nullptr || member->incarnation != request.incarnation()) return;
  LOG(INFO) << Describe(*member) << " leaves";
  LoseMember(request.member(), "left before the job was finished");
}

void JobController::FailJob(const v1::FailJobRequest& request) {
  absl::MutexLock lock(&mutex_);
  const bool named =
      absl::StartsWith(request.cause(), absl::StrCat(request.member(), ":")) ||
      absl::StartsWith(request.cause(), absl::StrCat(request.member(), " "));
  const std::string cause =
      absl::StrCat(named ? "" : absl::StrCat(request.member(), ": "), request.cause());
  if (members_.Find(request.member()) == nullptr) {
    LOG(WARNING) << "ignored, from a stranger: " << cause;
    return;
  }
  Fail(cause);
}

absl::Status JobController::ReportStep(const v1::ReportStepRequest& request) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(TakeReport(request.member(), v1::MEMBER_KIND_WORKER));
  if (request.step() < steps_taken_) return absl::OkStatus();
  ReplicaJoin& join = steps_.try_emplace(request.step(), assignments_).first->second;
  RETURN_IF_ERROR(join.Add(request.member(), request.losses(), request.balance()));
  if (!join.complete()) return absl::OkStatus();

  CompletedStep step;
  step.step = request.step() + 1;
  step.total_steps = request.total_steps();
  step.loss_sum = join.loss_sum();
  step.tokens = join.tokens();
  step.learning_rate = request.learning_rate();
  step.balance = join.StepBalance();
  if (!std::isfinite(step.loss_sum)) {
    // Counted from 0, as workers count.
    Fail(absl::StrCat("training diverged: the loss of step ", request.step(),
                      " isn't finite"));
    return absl::OkStatus();
  }
  progress_.Step(step, options_.now());
  if (evaluations_.empty()) balance_ = step.balance;
  steps_taken_ = step.step;
  steps_.erase(steps_.begin(), steps_.lower_bound(steps_taken_));
  return absl::OkStatus();
}

absl::StatusOr<v1::ReportEvaluationResponse> JobController::ReportEvaluation(
    const v1::ReportEvaluationRequest& request, const Cancelled& cancelled) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(TakeReport(request.member(), v1::MEMBER_KIND_WORKER));
  ReplicaJoin& join =
      evaluations_.Join(request.step(), request.split(), assignments_, options_.now());
  const bool was_complete = join.complete();
  RETURN_IF_ERROR(join.Add(request.member(), request.losses(), request.balance()));
  if (join.complete() && !was_complete) {
    balance_ = join.EvaluationBalance();
    progress_.Evaluation(request.step(), request.split(), join.perplexity(), balance_,
                         options_.now());
    changed_.SignalAll();
  }
  RETURN_IF_ERROR(Hold(cancelled, [&] { return join.complete(); }));
  v1::ReportEvaluationResponse response;
  response.set_perplexity(join.perplexity());
  return response;
}

absl::Status JobController::ReportShardFile(const v1::ReportShardFileRequest& request) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(TakeReport(request.member(), v1::MEMBER_KIND_SERVER));
  RETURN_IF_ERROR(checkpoint_keeper_.AddShard(request));
  CommitReady();
  return absl::OkStatus();
}

absl::StatusOr<v1::AwaitCheckpointResponse> JobController::AwaitCheckpoint(
    const v1::AwaitCheckpointRequest& request, const Cancelled& cancelled) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(TakeReport(request.member(), v1::MEMBER_KIND_WORKER));
  checkpoint_keeper_.AddWaiter(request.member(), request.step(), options_.now());
  CommitReady();
  RETURN_IF_ERROR(Hold(
      cancelled, [&] { return checkpoint_keeper_.Find(request.step()) != nullptr; }));
  v1::AwaitCheckpointResponse response;
  response.set_folder(checkpoint_keeper_.Find(request.step())->folder());
  response.set_digest(checkpoint_keeper_.Find(request.step())->digest());
  return response;
}

absl::Status JobController::FinishWork(const v1::FinishWorkRequest& request) {
  absl::MutexLock lock(&mutex_);
  if (phase_ == v1::PHASE_FINISHED) return absl::OkStatus();
  RETURN_IF_ERROR(TakeReport(request.member(), v1::MEMBER_KIND_WORKER));
  members_.Find(request.member())->finished = true;
  for (const std::string& worker : members_.Ids(v1::MEMBER_KIND_WORKER)) {
    if (!members_.Find(worker)->finished) return absl::OkStatus();
  }
  EnterPhase(v1::PHASE_FINISHED);
  for (const std::string& line : SummaryLines(job_.name(), Summary())) {
    progress_.Line(line);
  }
  return absl::OkStatus();
}

v1::GetClusterStatusResponse JobController::GetClusterStatus() {
  absl::MutexLock lock(&mutex_);
  v1::GetClusterStatusResponse response;
  *response.mutable_state() = State();
  for (const auto& [id, member] : members_.members()) {
    v1::MemberStatus* status = response.add_members();
    status->set_member(id);
    status->set_kind(member.registration.kind());
    status->set_address(member.registration.address());
    status->set_host(member.registration.host());
    status->set_pid(member.registration.pid());
    status->set_numerics(member.registration.numerics());
    status->set_numerics_description(member.registration.numerics_description());
    status->set_seconds_since_heartbeat(
        absl::ToDoubleSeconds(options_.now() - member.last_heartbeat));
    status->set_waiting_for(member.waiting_for);
    *status->mutable_times() = member.times;
  }
  *response.mutable_progress() = progress_.progress();
  response.mutable_checkpoints()->Assign(checkpoints_.begin(), checkpoints_.end());
  return response;
}

void JobController::Tick() {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = options_.now();
  // A coordinator that was stopped, or that waited for its disk, can't say who was
  // silent.
  const absl::Duration pause = now - std::exchange(last_tick_, now);
  if (pause > options_.lease / 2) {
    for (auto& [id, member] : members_.members()) member.last_heartbeat += pause;
    last_progress_ += pause;
    checkpoint_keeper_.Excuse(pause);
    evaluations_.Excuse(pause);
  }
  if (over()) {
    changed_.SignalAll();
    return;
  }

  std::vector<std::pair<std::string, std::string>> lost;
  for (const auto& [id, member] : members_.members()) {
    const absl::Duration silence = now - member.last_heartbeat;
    if (silence < options_.lease) continue;
    lost.emplace_back(id,
                      absl::StrFormat("was lost: no heartbeat for %.1f s; it was last %s",
                                      absl::ToDoubleSeconds(silence), Doing(member)));
  }
  for (const auto& [id, how] : lost) LoseMember(id, how);

  for (const std::string& overdue :
       {evaluations_.Overdue(now, options_.report_timeout),
        checkpoint_keeper_.Overdue(now, options_.report_timeout)}) {
    if (!overdue.empty()) Fail(overdue);
  }
  if (phase_ == v1::PHASE_RUNNING && now - last_progress_ >= options_.report_timeout) {
    Fail(absl::StrCat("no step, evaluation or checkpoint for ",
                      FormatTimeSpan(now - last_progress_), "; ", WhatWorkersDo(),
                      " (if one takes that long, raise --report_timeout_s)"));
  }
  PrintWaiting();
}

void JobController::Stop(const std::string& cause) {
  absl::MutexLock lock(&mutex_);
  End("stopped", cause);
}

absl::Status JobController::WaitUntilOver() {
  absl::MutexLock lock(&mutex_);
  while (true) {
    if (over()) {
      const auto& members = members_.members();
      const bool all_know =
          std::all_of(members.begin(), members.end(),
                      [](const auto& entry) { return entry.second.saw_end; });
      if (all_know || options_.now() - over_since_ >= options_.lease) break;
    }
    changed_.Wait(&mutex_);
  }
  return phase_ == v1::PHASE_FINISHED ? absl::OkStatus() : absl::AbortedError(failure_);
}

RunSummary JobController::summary() {
  absl::MutexLock lock(&mutex_);
  return Summary();
}

absl::Status JobController::TakeReport(const std::string& member, v1::MemberKind kind) {
  if (phase_ == v1::PHASE_FAILED) return absl::AbortedError(failure_);
  const MemberRecord* record = members_.Find(member);
  if (record == nullptr || record->registration.kind() != kind) {
    return absl::NotFoundError(absl::StrCat(
        member, " is no ", kind == v1::MEMBER_KIND_SERVER ? "server" : "worker",
        " of this cluster"));
  }
  if (phase_ != v1::PHASE_RUNNING) {
    return absl::FailedPreconditionError(
        absl::StrCat(member, " reported while the job isn't running"));
  }
  last_progress_ = options_.now();
  return absl::OkStatus();
}

absl::Status JobController::Hold(const Cancelled& cancelled,
                                 const std::function<bool()>& done) {
  while (!done()) {
    if (phase_ == v1::PHASE_FAILED) return absl::AbortedError(failure_);
    if (over()) return absl::FailedPreconditionError("the job is finished");
    if (cancelled()) return absl::CancelledError("the member gave up the call");
    changed_.WaitWithTimeout(&mutex_, kLook);
  }
  return absl::OkStatus();
}

void JobController::EnterPhase(v1::Phase phase) {
  phase_ = phase;
  LOG(INFO) << "the job " << job_.name() << " enters " << v1::Phase_Name(phase);
  if (phase == v1::PHASE_RUNNING) running_since_ = last_progress_ = options_.now();
  if (over()) over_since_ = options_.now();
  changed_.SignalAll();
  if (const absl::Status status = Put("job/phase", v1::Phase_Name(phase)); !status.ok()) {
    // When the job is over there is nothing left to protect.
    if (over()) {
      LOG(ERROR) << "cannot record the end of the job: " << status.message();
    } else {
      Fail(absl::StrCat("coordinator: ", std::string(status.message())));
    }
  }
}

void JobController::Fail(const std::string& cause) { End("failed", cause); }

void JobController::End(const char* how, const std::string& cause) {
  if (over()) {
    LOG(WARNING) << "after the end of the job: " << cause;
    return;
  }
  failure_ = cause;
  EnterPhase(v1::PHASE_FAILED);
  progress_.Line(absl::StrCat(how, ": ", cause));
}

void JobController::Advance() {
  if (phase_ == v1::PHASE_WAITING && members_.complete()) StartLoading();
  if (phase_ == v1::PHASE_LOADING) {
    for (const std::string& id : members_.Ids(v1::MEMBER_KIND_SERVER)) {
      if (members_.Find(id)->ready_generation != generation_) return;
    }
    EnterPhase(v1::PHASE_RUNNING);
    if (phase_ != v1::PHASE_RUNNING) return;
    const uint64_t start_step =
        options_.restore.has_value() ? options_.restore->manifest.step() : 0;
    steps_taken_ = start_step;
    progress_.Begin(start_step, data_.train_tokens(), running_since_);
    progress_.Line(absl::StrCat(
        options_.mode == v1::RUN_MODE_EVALUATE
            ? absl::StrCat("evaluating on the ", SplitName(options_.evaluate_split),
                           " text")
            : absl::StrCat("training ", job_.name()),
        " on ", options_.servers, options_.servers == 1 ? " server" : " servers", " and ",
        options_.workers, options_.workers == 1 ? " worker" : " workers"));
  }
}

void JobController::StartLoading() {
  const std::vector<std::string> servers = members_.Ids(v1::MEMBER_KIND_SERVER);
  const std::vector<std::string> workers = members_.Ids(v1::MEMBER_KIND_WORKER);
  data_ = members_.Find(workers.front())->registration.data();
  if (job_.model().vocabulary() == 0) {
    job_.mutable_model()->set_vocabulary(static_cast<int32_t>(data_.vocabulary()));
  }
  const ModelPlan plan = MakeModelPlan(job_);
  if (const absl::Status status = CheckShardSizes(plan, kMaxMessageBytes); !status.ok()) {
    Fail(std::string(status.message()));
    return;
  }
  placement_ = MakePlacement(plan, servers);
  assignments_ = AssignReplicas(job_.training().replicas(), workers);
  for (const std::string& server : servers) {
    addresses_[server] = members_.Find(server)->registration.address();
  }
  v1::Manifest manifest;
  manifest.set_format_version(kManifestVersion);
  manifest.set_job_name(job_.name());
  google::protobuf::TextFormat::PrintToString(job_, manifest.mutable_job());
  manifest.set_data_sha256(data_.sha256());
  manifest.set_generation(generation_);
  checkpoint_keeper_ = CheckpointKeeper(placement_, workers, std::move(manifest));

  std::string placement;
  CHECK(google::protobuf::util::MessageToJsonString(placement_, &placement).ok());
  if (const absl::Status status = Put("job/placement", placement); !status.ok()) {
    Fail(absl::StrCat("coordinator: ", std::string(status.message())));
    return;
  }
  EnterPhase(v1::PHASE_LOADING);
}

void JobController::LoseMember(const std::string& id, const std::string& how) {
  const std::string text = absl::StrCat(Describe(*members_.Find(id)), " ", how);
  members_.Remove(id);
  if (phase_ == v1::PHASE_WAITING) {
    // Nothing is lost yet, so another process may take the place.
    progress_.Line(text);
  } else if (!over()) {
    Fail(text);
  }
  changed_.SignalAll();
}

void JobController::CommitReady() {
  const std::optional<uint64_t> step = checkpoint_keeper_.TakeReady();
  if (!step.has_value()) return;
  v1::Manifest manifest = checkpoint_keeper_.MakeManifest(*step);
  manifest.set_validation_perplexity(
      evaluations_.Perplexity(*step, v1::SPLIT_VALIDATION).value_or(0));

  // Heartbeats go on while the disk works.
  mutex_.Unlock();
  absl::StatusOr<std::vector<v1::CheckpointStatus>> committed =
      CommitCheckpoint(options_.checkpoint_dir, std::move(manifest));
  mutex_.Lock();
  if (!committed.ok()) {
    Fail(absl::StrCat("the checkpoint of step ", *step,
                      " failed: ", std::string(committed.status().message())));
    return;
  }
  checkpoints_ = *std::move(committed);
  for (const v1::CheckpointStatus& checkpoint : checkpoints_) {
    if (checkpoint.step() != *step) continue;
    checkpoint_keeper_.Committed(*step, checkpoint);
    progress_.Checkpoint(checkpoint, options_.now());
  }
  changed_.SignalAll();
}

std::string JobController::WaitingFor() const {
  if (phase_ == v1::PHASE_WAITING)
    return absl::StrCat("waiting for ", members_.Missing());
  if (phase_ != v1::PHASE_LOADING) return "";
  std::vector<std::string> loading;
  for (const auto& [id, member] : members_.members()) {
    if (member.registration.kind() == v1::MEMBER_KIND_SERVER &&
        member.ready_generation != generation_) {
      loading.push_back(id);
    }
  }
  return absl::StrCat("waiting for ", absl::StrJoin(loading, ", "), " to load shards");
}

std::string JobController::WhatWorkersDo() const {
  std::vector<std::string> doings;
  for (const auto& [id, member] : members_.members()) {
    if (member.registration.kind() != v1::MEMBER_KIND_WORKER) continue;
    doings.push_back(absl::StrCat(id, " is ", Doing(member)));
  }
  return absl::StrJoin(doings, ", ");
}

v1::ClusterState JobController::State() const {
  v1::ClusterState state;
  state.set_phase(phase_);
  state.set_generation(generation_);
  state.set_failure(failure_);
  state.set_waiting_for(WaitingFor());
  if (phase_ == v1::PHASE_WAITING || assignments_.empty()) return state;
  *state.mutable_job() = job_;
  state.set_mode(options_.mode);
  state.set_evaluate_split(options_.evaluate_split);
  *state.mutable_placement() = placement_;
  state.mutable_replicas()->Assign(assignments_.begin(), assignments_.end());
  for (const auto& [server, address] : addresses_) {
    v1::ServerAddress* entry = state.add_servers();
    entry->set_server(server);
    entry->set_address(address);
  }
  if (options_.restore.has_value()) {
    state.set_restore_from(options_.restore->folder);
    state.set_start_step(options_.restore->manifest.step());
  }
  state.set_checkpoint_dir(options_.checkpoint_dir);
  return state;
}

RunSummary JobController::Summary() const {
  RunSummary summary;
  summary.phase = phase_;
  summary.failure = failure_;
  summary.test_perplexity = progress_.progress().test_perplexity();
  summary.validation_perplexity = progress_.progress().validation_perplexity();
  if (options_.restore.has_value()) {
    summary.digest = options_.restore->manifest.digest();
    summary.checkpoint = options_.restore->folder;
  }
  if (options_.mode == v1::RUN_MODE_TRAIN && !checkpoints_.empty()) {
    summary.digest = checkpoints_.back().digest();
    summary.checkpoint = checkpoints_.back().folder();
  }
  summary.balance = balance_;
  summary.step = progress_.progress().step();
  summary.words_per_second = progress_.mean_words_per_second();
  if (running_since_ != absl::InfiniteFuture()) {
    summary.seconds = absl::ToDoubleSeconds(
        (over_since_ == absl::InfiniteFuture() ? options_.now() : over_since_) -
        running_since_);
  }
  return summary;
}

void JobController::PrintWaiting() {
  const std::string waiting_for = WaitingFor();
  if (!waiting_for.empty()) progress_.Waiting(waiting_for, options_.now());
}

absl::Status JobController::Put(const std::string& key, const std::string& value) {
  ASSIGN_OR_RETURN(const std::optional<Store::Entry> entry, store_.Get(key));
  return store_.CompareAndSwap(key, entry.has_value() ? entry->version : 0, value)
      .status();
}

}  // namespace moe
