#include "server/coordinator/job_lifecycle.h"

#include <glog/logging.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "common/job/placement.h"
#include "server/coordinator/scaling.h"

namespace moe {
namespace {

constexpr uint64_t kMostGenerations = uint64_t{1} << 62;

// Seconds between lines about refusals, of which a stranger may cause any number.
constexpr double kRefusalNotice = 0.02;

absl::StatusOr<uint64_t> GetCounter(Store& store, const std::string& key) {
  ASSIGN_OR_RETURN(const std::optional<Store::Entry> entry, store.Get(key));
  uint64_t count = 0;
  if (entry.has_value() && !absl::SimpleAtoi(entry->value, &count)) {
    return absl::DataLossError(absl::StrCat("state key ", key, " holds no number"));
  }
  return count;
}

// "2 servers"
std::string Count(int count, const char* what) {
  return absl::StrCat(count, " ", what, count == 1 ? "" : "s");
}

}  // namespace

JobLifecycle::JobLifecycle(const RunOptions& options, Store& store,
                           ProgressReporter& progress)
    : options_(options),
      store_(store),
      progress_(progress),
      members_({.servers = options.servers,
                .workers = options.workers,
                .allow_mixed_numerics = options.job.allow_mixed_numerics(),
                .vocabulary = options.job.model().vocabulary(),
                .data_sha256 = options.restore.has_value()
                                   ? options.restore->manifest.data_sha256()
                                   : ""}),
      restore_(options.restore),
      furthest_step_(start_step()) {}

absl::Status JobLifecycle::Begin() {
  ASSIGN_OR_RETURN(const uint64_t before, GetCounter(store_, "job/coordinator"));
  RETURN_IF_ERROR(store_.Put("job/coordinator", absl::StrCat(before + 1)));
  coordinator_ = before + 1;
  if (options_.adoption.has_value()) return Adopt(options_.adoption->running);
  if (options_.interrupted) {
    recovery_ = "the coordinator was started again";
    RETURN_IF_ERROR(LoadSize());
  } else {
    RETURN_IF_ERROR(SaveSize(0, 0));
  }
  RETURN_IF_ERROR(store_.Put(
      "job/asked_size", AskedSize(options_.servers, options_.workers, options_.copies)));
  RETURN_IF_ERROR(OpenGeneration());
  RETURN_IF_ERROR(store_.Put("job/name", options_.job.name()));
  RETURN_IF_ERROR(store_.Put("job/phase", v1::Phase_Name(phase_)));
  if (restore_.has_value()) {
    progress_.Line(absl::StrCat("starting from ", restore_->folder, "  digest ",
                                restore_->manifest.digest().substr(0, 16)));
  }
  PrintWaiting();
  return absl::OkStatus();
}

absl::Status JobLifecycle::Adopt(const v1::RunningGeneration& running) {
  const MemberTable::Rules rules = {
      .servers = 0,
      .workers = 0,
      .allow_mixed_numerics = options_.job.allow_mixed_numerics(),
      .vocabulary = options_.job.model().vocabulary(),
      .data_sha256 = ""};
  ASSIGN_OR_RETURN(members_, RestoreMembers(running, rules, options_.now()));
  ASSIGN_OR_RETURN(layout_, MakeLayout(options_.job, true, members_, options_.copies,
                                       &running.placement()));
  members_.Fix(layout_->data.sha256());
  lost_.assign(running.lost().begin(), running.lost().end());
  // In whose places others may come.
  members_.Want(members_.count(v1::MEMBER_KIND_SERVER) + static_cast<int>(lost_.size()),
                members_.count(v1::MEMBER_KIND_WORKER));
  generation_ = running.generation();
  generation_since_ = options_.now();
  recovery_ = running.recovery();
  restore_.reset();
  if (!running.restore_from().empty()) {
    restore_ = RestorePoint{.folder = running.restore_from(), .manifest = {}, .job = {}};
    restore_->manifest.set_step(running.start_step());
  }
  if (running.has_taken_over()) taken_over_ = running.taken_over();
  furthest_step_ = start_step();
  phase_ = v1::PHASE_RUNNING;
  running_since_ = options_.now();
  adopting_ = true;
  progress_.Line(absl::StrCat("generation ", generation_, " was running on ",
                              members_.count(v1::MEMBER_KIND_SERVER), " servers and ",
                              members_.count(v1::MEMBER_KIND_WORKER),
                              " workers; it goes on if all are back within ",
                              FormatTimeSpan(options_.rejoin_timeout)));
  return absl::OkStatus();
}

void JobLifecycle::Welcome(const v1::HeartbeatRequest& request,
                           uint64_t checkpoint_step) {
  // Also of members of a coordinator without this one's memory, which this one can't tell from strangers: so
  // never a number after which there would be none.
  if (request.generation() < kMostGenerations) {
    named_generation_ = std::max(named_generation_, request.generation());
  }
  MemberRecord* const member = members_.SenderOf(request);
  if (member == nullptr || member->incarnation != request.incarnation()) return;
  if (!member->awaited) return;
  const bool server = member->registration.kind() == v1::MEMBER_KIND_SERVER;
  const uint64_t least = std::max(start_step(), checkpoint_step);
  const uint64_t version = layout_->placement.version();
  std::string unfit;
  if (request.generation() != generation_ ||
      (server && request.ready_generation() != generation_)) {
    unfit = absl::StrCat("is not in generation ", generation_, " any more");
  } else if (request.placement_version() != version) {
    unfit = absl::StrCat("has version ", request.placement_version(),
                         " of the placement instead of ", version);
  } else if (request.step() < least) {
    unfit = absl::StrCat("knows of ", request.step(), " steps, but ", least,
                         " have been taken");
  }
  if (!unfit.empty()) {
    Lose(member->id, unfit);
    return;
  }
  member->awaited = false;
  member->heard_generation = generation_;
  NoteBack();
}

void JobLifecycle::NoteBack() {
  if (!adopting_ || !members_.Awaited().empty()) return;
  adopting_ = false;
  progress_.Line(absl::StrCat("generation ", generation_, " goes on: all are back"));
}

void JobLifecycle::Keep(const v1::StoredEvaluations& evaluations) {
  if (const absl::Status status = SaveEvaluations(store_, evaluations); !status.ok()) {
    FailForStore(status);
  }
}

absl::Status JobLifecycle::OpenGeneration() {
  ASSIGN_OR_RETURN(uint64_t generation, GetCounter(store_, "job/generation"));
  generation = std::max(generation, named_generation_);
  adopting_ = false;
  if (restore_.has_value()) {
    generation = std::max(generation, restore_->manifest.generation());
  }
  RETURN_IF_ERROR(store_.Put("job/generation", absl::StrCat(generation + 1)));
  generation_ = generation + 1;
  generation_since_ = options_.now();
  members_.BeginGeneration(generation_);
  lost_.clear();
  handover_.Begin();
  taken_over_.reset();
  return absl::OkStatus();
}

absl::Status JobLifecycle::LoadSize() {
  // Whoever starts it with other numbers than before wants those.
  ASSIGN_OR_RETURN(const std::optional<Store::Entry> asked, store_.Get("job/asked_size"));
  if (!asked.has_value() ||
      asked->value != AskedSize(options_.servers, options_.workers, options_.copies)) {
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const uint64_t servers, GetCounter(store_, "job/servers"));
  ASSIGN_OR_RETURN(const uint64_t workers, GetCounter(store_, "job/workers"));
  if (servers > 0 && workers > 0) {
    members_.Want(static_cast<int>(servers), static_cast<int>(workers));
  }
  return absl::OkStatus();
}

absl::Status JobLifecycle::SaveSize(int servers, int workers) {
  RETURN_IF_ERROR(store_.Put("job/servers", absl::StrCat(servers)));
  return store_.Put("job/workers", absl::StrCat(workers));
}

void JobLifecycle::Excuse(absl::Duration pause) {
  generation_since_ += pause;
  members_.Excuse(pause);
}

std::string JobLifecycle::Overdue() const {
  if (phase_ != v1::PHASE_WAITING || recovery_.empty() || needs_restore_point_ ||
      options_.now() - generation_since_ < options_.report_timeout) {
    return "";
  }
  return absl::StrCat(recovery_, "; then waited ",
                      FormatTimeSpan(options_.report_timeout), " for ",
                      members_.Missing());
}

void JobLifecycle::Recover(const std::string& cause) {
  if (options_.recoveries == 0) {
    Fail(cause);
    return;
  }
  if (++recoveries_ > options_.recoveries) {
    Fail(absl::StrCat(cause, "; that ended the generation ", generation_,
                      ", and none since step ", furthest_step_, " got any further (",
                      options_.recoveries, " may fail in a row: --recoveries)"));
    return;
  }
  progress_.Line(absl::StrCat("recovering: ", cause));
  const auto servers = static_cast<int>(layout_->addresses.size() + lost_.size());
  const auto workers = static_cast<int>(layout_->workers.size());
  if (!members_.enough()) {
    // Who was to leave may be needed in the place of the lost one.
    if (members_.wanted(v1::MEMBER_KIND_SERVER) != servers ||
        members_.wanted(v1::MEMBER_KIND_WORKER) != workers) {
      progress_.Line("the scaling that was asked for is off; ask again");
    }
    members_.CancelLeaving();
    members_.Want(servers, workers);
  }
  Reopen(cause);
}

void JobLifecycle::Reopen(const std::string& cause) {
  if (const absl::Status status = OpenGeneration(); !status.ok()) {
    FailForStore(status);
    return;
  }
  members_.ReleaseLeaving();
  recovery_ = cause;
  layout_.reset();
  // An evaluation has no checkpoint but the one that it is of.
  needs_restore_point_ = options_.mode == v1::RUN_MODE_TRAIN;
  Enter(v1::PHASE_WAITING);
}

bool JobLifecycle::TakesPart(const std::string& id) const {
  return layout_.has_value() && layout_->memory.contains(id);
}

absl::StatusOr<std::string> JobLifecycle::Scale(const v1::ScaleRequest& request) {
  if (options_.mode != v1::RUN_MODE_TRAIN || phase_ != v1::PHASE_RUNNING) {
    return absl::FailedPreconditionError(
        absl::StrCat("the job isn't training now", WaitingFor().empty() ? "" : ", it is ",
                     WaitingFor()));
  }
  ASSIGN_OR_RETURN(
      members_, PlanScaling(members_, request, options_.job, options_.copies, *layout_));
  handover_.Cancel();
  no_room_for_standby_ = false;
  const std::map<std::string, MemberRecord> all = members_.members();
  for (const auto& [id, member] : all) {
    if (member.leaving && !TakesPart(id)) members_.Release(id);
  }
  std::string plan =
      absl::StrCat(Count(members_.wanted(v1::MEMBER_KIND_SERVER), "server"), " and ",
                   Count(members_.wanted(v1::MEMBER_KIND_WORKER), "worker"));
  if (!members_.complete()) {
    absl::StrAppend(&plan, ", once ", members_.Missing(), " have joined");
  } else {
    absl::StrAppend(&plan, WaitsToScale() ? "" : ", as it is");
  }
  progress_.Line(absl::StrCat("scaling to ", plan));
  return plan;
}

bool JobLifecycle::WaitsToScale() const {
  if (options_.mode != v1::RUN_MODE_TRAIN || phase_ != v1::PHASE_RUNNING ||
      !members_.complete()) {
    return false;
  }
  if (!no_room_for_standby_ && members_.count(v1::MEMBER_KIND_SERVER) > 1 &&
      !WithoutStandby().empty()) {
    return true;
  }
  return std::any_of(members_.members().begin(), members_.members().end(),
                     [this](const auto& entry) {
                       return entry.second.leaving == TakesPart(entry.first);
                     });
}

void JobLifecycle::PlanHandover() {
  if (!WaitsToScale()) {
    handover_.Cancel();
    return;
  }
  if (handover_.planned()) return;
  absl::StatusOr<Layout> next =
      MakeNextLayout(options_.job, members_, options_.copies, *layout_);
  if (next.ok()) {
    handover_.Plan(*std::move(next), *layout_);
    return;
  }
  // Members that have come since decide, too, whether it fits.
  progress_.Line(absl::StrCat("can't scale: ", std::string(next.status().message())));
  members_.Restrict(layout_->memory);
  no_room_for_standby_ = true;
}

bool JobLifecycle::ReadyToHandOver() const {
  return phase_ == v1::PHASE_RUNNING && handover_.planned() && handover_.Ready(members_);
}

void JobLifecycle::AwaitHandover(const std::string& worker, uint64_t steps) {
  // Asked again, after an answer that was lost.
  if (MayGoOn(steps)) return;
  handover_.AddStopped(worker, steps, options_.now());
}

bool JobLifecycle::TryHandOver(bool cut_under_way) {
  if (phase_ != v1::PHASE_RUNNING) return false;
  const std::optional<uint64_t> stopped = handover_.AllStopped(layout_->workers);
  if (!stopped.has_value()) return false;
  if (!ReadyToHandOver()) {
    handover_.GoOn(*stopped);
    return true;
  }
  if (!cut_under_way) HandOver(*stopped);
  return false;
}

bool JobLifecycle::EndVainHandover() {
  if (phase_ != v1::PHASE_RUNNING) return false;
  const std::optional<uint64_t> steps =
      handover_.StoppedInVain(layout_->workers, options_.now());
  if (steps.has_value()) handover_.GoOn(*steps);
  return steps.has_value();
}

void JobLifecycle::HandOver(uint64_t steps) {
  Layout next = handover_.next();
  const bool again = !WithoutStandby().empty();
  v1::Handover taken_over;
  taken_over.set_generation(generation_);
  taken_over.set_step(steps);
  *taken_over.mutable_placement() = layout_->placement;
  AddAddresses(*layout_, taken_over.mutable_servers());
  if (const absl::Status status = OpenGeneration(); !status.ok()) {
    FailForStore(status);
    return;
  }
  taken_over_ = std::move(taken_over);
  recovery_ =
      absl::StrCat("scaled to ", Count(members_.count(v1::MEMBER_KIND_SERVER), "server"),
                   " and ", Count(members_.count(v1::MEMBER_KIND_WORKER), "worker"),
                   again ? ", with second copies of all shards again" : "");
  progress_.Line(recovery_);
  StartLoading(std::move(next));
}

void JobLifecycle::SetRestorePoint(std::optional<RestorePoint> restore) {
  needs_restore_point_ = false;
  restore_ = std::move(restore);
  progress_.Line(absl::StrCat("generation ", generation_, " goes on from ",
                              restore_.has_value()
                                  ? restore_->folder
                                  : "the beginning, as there is no checkpoint"));
}

void JobLifecycle::NoteStep(uint64_t step) {
  if (step <= furthest_step_) return;
  furthest_step_ = step;
  recoveries_ = 0;
}

absl::StatusOr<const MemberRecord*> JobLifecycle::Join(
    const v1::RegisterRequest& request) {
  const std::string id = MemberId(request.kind(), request.name());
  const int servers = members_.wanted(v1::MEMBER_KIND_SERVER);
  const int workers = members_.wanted(v1::MEMBER_KIND_WORKER);
  if (options_.grow) Grow(id, request.kind());
  bool repeated = false;
  if (absl::Status refusal = members_.Check(request, options_.now(), &repeated);
      !refusal.ok()) {
    members_.Want(servers, workers);
    // One that is to ask again does so several times a second.
    if (!absl::IsUnavailable(refusal)) {
      LOG_EVERY_T(WARNING, kRefusalNotice) << "refused: " << refusal.message();
    }
    return refusal;
  }
  if (over()) {
    return absl::FailedPreconditionError(
        phase_ == v1::PHASE_FINISHED
            ? absl::StrCat(id, " comes too late: the job is finished")
            : absl::StrCat(id, " comes too late: the job failed: ", failure_));
  }
  if (const MemberRecord* const before = members_.Find(id);
      !repeated && before != nullptr && before->awaited) {
    Lose(id, "was lost: another process has come under its name");
  }
  if (!repeated) {
    const std::string key = absl::StrCat("members/", id);
    ASSIGN_OR_RETURN(const uint64_t incarnation, GetCounter(store_, key));
    RETURN_IF_ERROR(store_.Put(key, absl::StrCat(incarnation + 1)));
    const MemberRecord& member = members_.Add(request, incarnation + 1, options_.now());
    // A plan may know another process of that name.
    handover_.Cancel();
    no_room_for_standby_ = false;
    LOG(INFO) << Describe(member) << " has joined"
              << (request.address().empty() ? "" : " at ") << request.address();
  }
  return members_.Find(id);
}

void JobLifecycle::Grow(const std::string& id, v1::MemberKind kind) {
  if (options_.mode != v1::RUN_MODE_TRAIN || phase_ != v1::PHASE_RUNNING ||
      members_.Find(id) != nullptr || members_.count(kind) < members_.wanted(kind)) {
    return;
  }
  const bool server = kind == v1::MEMBER_KIND_SERVER;
  if (!server && members_.wanted(kind) == options_.job.training().replicas()) return;
  members_.Want(members_.wanted(v1::MEMBER_KIND_SERVER) + (server ? 1 : 0),
                members_.wanted(v1::MEMBER_KIND_WORKER) + (server ? 0 : 1));
}

// By value: the record that an id may lie in is removed.
void JobLifecycle::Lose(std::string id, const std::string& how) {
  const MemberRecord* const member = members_.Find(id);
  // It may have gone with a generation that ended just now.
  if (member == nullptr) return;
  const std::string text = absl::StrCat(Describe(*member), " ", how);
  // Until the others have taken over, those that leave have shards.
  const bool needed =
      TakesPart(id) || (phase_ == v1::PHASE_LOADING && taken_over_.has_value());
  members_.Remove(id);
  if (phase_ == v1::PHASE_WAITING || (!over() && !needed)) {
    // Nothing is lost yet, so another process may take the place.
    progress_.Line(text);
  } else if (!over() && !GoOnWithout(id, text)) {
    Recover(text);
  }
}

void JobLifecycle::LoseServer(const std::string& server, const std::string& worker,
                              const std::string& cause, uint64_t generation) {
  if (phase_ != v1::PHASE_RUNNING || generation != generation_ ||
      !layout_->addresses.contains(server)) {
    return;
  }
  const std::string text = absl::StrCat(server, " was lost by ", worker, ": ", cause);
  if (!GoOnWithout(server, text)) Recover(text);
}

bool JobLifecycle::GoOnWithout(const std::string& server, const std::string& cause) {
  if (options_.copies == 1 || phase_ != v1::PHASE_RUNNING ||
      !layout_->addresses.contains(server) || !CanSpare(layout_->placement, server)) {
    return false;
  }
  Layout rest = *layout_;
  rest.placement = Without(std::move(rest.placement), server);
  rest.addresses.erase(server);
  rest.memory.erase(server);
  // If it lives it finds out, and comes as another.
  members_.Remove(server);
  handover_.Cancel();
  lost_.push_back(cause);
  if (const absl::Status status = SaveGeneration(rest); !status.ok()) {
    FailForStore(status);
    return true;
  }
  layout_ = std::move(rest);
  progress_.Line(absl::StrCat("going on without ", server, ": ", WithoutStandby()));
  NoteBack();
  return true;
}

std::string JobLifecycle::WithoutStandby() const {
  if (options_.copies == 1 || !layout_.has_value()) return "";
  const auto& shards = layout_->placement.shards();
  const auto single = std::count_if(
      shards.begin(), shards.end(),
      [](const v1::ShardPlacement& placed) { return placed.standby().empty(); });
  if (single == 0) return "";
  std::vector<std::string> parts = lost_;
  parts.push_back(absl::StrCat(single, " of ", shards.size(),
                               " shards have no second copy until another server joins"));
  return absl::StrJoin(parts, "; ");
}

bool JobLifecycle::HasMembers() {
  if (members_.complete()) return true;
  if (recovery_.empty() || !members_.viable() ||
      options_.now() - generation_since_ < options_.rejoin_timeout) {
    return false;
  }
  progress_.Line(absl::StrCat("going on without ", members_.Missing(),
                              ", which didn't come back within ",
                              FormatTimeSpan(options_.rejoin_timeout)));
  return true;
}

void JobLifecycle::Advance() {
  if (phase_ == v1::PHASE_RUNNING) PlanHandover();
  if (phase_ == v1::PHASE_WAITING && !needs_restore_point_ && HasMembers()) {
    const bool training = options_.mode == v1::RUN_MODE_TRAIN;
    absl::StatusOr<Layout> layout =
        MakeLayout(options_.job, training, members_, options_.copies);
    if (!layout.ok() && options_.copies > 1 && !recovery_.empty()) {
      // Rather than not at all.
      progress_.Line(absl::StrCat("without second copies: ",
                                  std::string(layout.status().message())));
      no_room_for_standby_ = true;
      layout = MakeLayout(options_.job, training, members_, /*copies=*/1);
    }
    if (!layout.ok()) {
      Fail(std::string(layout.status().message()));
      return;
    }
    StartLoading(*std::move(layout));
  }
  if (phase_ != v1::PHASE_LOADING) return;
  for (const auto& [id, address] : layout_->addresses) {
    if (members_.Find(id)->ready_generation != generation_) return;
  }
  StartRunning();
}

absl::Status JobLifecycle::SaveGeneration(const Layout& layout) {
  v1::RunningGeneration running;
  running.set_generation(generation_);
  running.set_recovery(recovery_);
  running.set_start_step(start_step());
  running.set_checkpoint_dir(options_.checkpoint_dir);
  if (taken_over_.has_value()) {
    *running.mutable_taken_over() = *taken_over_;
  } else if (restore_.has_value()) {
    running.set_restore_from(restore_->folder);
  }
  running.mutable_lost()->Assign(lost_.begin(), lost_.end());
  DescribeLayout(layout, members_, running);
  return SaveRunning(store_, running);
}

void JobLifecycle::StartLoading(Layout layout) {
  if (const absl::Status status = SaveGeneration(layout); !status.ok()) {
    FailForStore(status);
    return;
  }
  layout_ = std::move(layout);
  members_.Fix(layout_->data.sha256());
  if (const absl::Status status = SaveSize(members_.wanted(v1::MEMBER_KIND_SERVER),
                                           members_.wanted(v1::MEMBER_KIND_WORKER));
      !status.ok()) {
    FailForStore(status);
    return;
  }
  Enter(v1::PHASE_LOADING);
}

void JobLifecycle::StartRunning() {
  members_.ReleaseLeaving();
  Enter(v1::PHASE_RUNNING);
  if (phase_ != v1::PHASE_RUNNING) return;
  progress_.Line(
      absl::StrCat(options_.mode == v1::RUN_MODE_EVALUATE
                       ? absl::StrCat("evaluating on the ",
                                      SplitName(options_.evaluate_split), " text")
                       : absl::StrCat("training ", options_.job.name()),
                   " on ", Count(static_cast<int>(layout_->addresses.size()), "server"),
                   " and ", Count(static_cast<int>(layout_->workers.size()), "worker")));
}

void JobLifecycle::FinishWork(const std::string& worker) {
  members_.Find(worker)->finished = true;
  for (const std::string& id : layout_->workers) {
    if (!members_.Find(id)->finished) return;
  }
  Enter(v1::PHASE_FINISHED);
}

void JobLifecycle::Fail(const std::string& cause) { End("failed", cause); }

void JobLifecycle::FailForStore(const absl::Status& status) {
  Fail(absl::StrCat("coordinator: ", std::string(status.message())));
}

void JobLifecycle::FailBy(const std::string& member, const std::string& cause,
                          bool peer_lost) {
  const bool named = absl::StartsWith(cause, absl::StrCat(member, ":")) ||
                     absl::StartsWith(cause, absl::StrCat(member, " "));
  const std::string text = named ? cause : absl::StrCat(member, ": ", cause);
  if (!peer_lost) {
    Fail(text);
  } else if ((phase_ == v1::PHASE_LOADING || phase_ == v1::PHASE_RUNNING) &&
             // It may be the server's end of a link that broke.
             !GoOnWithout(member, text)) {
    Recover(text);
  }
}

void JobLifecycle::Stop(const std::string& cause) {
  if (!over()) End("stopped", cause);
}

void JobLifecycle::End(const char* how, const std::string& cause) {
  if (over()) {
    LOG(INFO) << "after the end of the job: " << cause;
    return;
  }
  failure_ = cause;
  Enter(v1::PHASE_FAILED);
  progress_.Line(absl::StrCat(how, ": ", cause));
}

void JobLifecycle::Enter(v1::Phase phase) {
  phase_ = phase;
  LOG(INFO) << "the job " << options_.job.name() << " enters " << v1::Phase_Name(phase);
  if (phase == v1::PHASE_RUNNING) {
    running_since_ = std::min(running_since_, options_.now());
  }
  if (over()) over_since_ = options_.now();
  if (const absl::Status status = store_.Put("job/phase", v1::Phase_Name(phase));
      !status.ok()) {
    // When the job is over there is nothing left to protect.
    if (over()) {
      LOG(ERROR) << "cannot record the end of the job: " << status.message();
    } else {
      FailForStore(status);
    }
  }
}

absl::Status JobLifecycle::CheckReporter(const MemberRecord* record,
                                         const std::string& member, v1::MemberKind kind,
                                         uint64_t generation) const {
  if (phase_ == v1::PHASE_FAILED) return absl::AbortedError(failure_);
  if (generation != generation_) {
    return absl::AbortedError(absl::StrCat("generation ", generation,
                                           " is over, the cluster is in ", generation_,
                                           recovery_.empty() ? "" : ": ", recovery_));
  }
  if (record == nullptr || record->registration.kind() != kind) {
    return absl::NotFoundError(absl::StrCat(
        member, " is no ", kind == v1::MEMBER_KIND_SERVER ? "server" : "worker",
        " of this cluster"));
  }
  if (phase_ != v1::PHASE_RUNNING) {
    return absl::FailedPreconditionError(
        absl::StrCat(member, " reported while the job isn't running"));
  }
  return absl::OkStatus();
}

void JobLifecycle::PrintWaiting() {
  const std::string waiting_for = WaitingFor();
  if (!waiting_for.empty()) progress_.Waiting(waiting_for, options_.now());
}

uint64_t JobLifecycle::start_step() const {
  if (taken_over_.has_value()) return taken_over_->step();
  return restore_.has_value() ? restore_->manifest.step() : 0;
}

std::string JobLifecycle::WaitingFor() const {
  if (phase_ == v1::PHASE_WAITING) {
    const std::string missing = members_.Missing();
    return absl::StrCat("waiting for ",
                        missing.empty() ? "the last checkpoint to be read" : missing);
  }
  if (adopting_ && phase_ == v1::PHASE_RUNNING) {
    return absl::StrCat("waiting for ", absl::StrJoin(members_.Awaited(), ", "),
                        " to be heard again");
  }
  if (phase_ != v1::PHASE_LOADING) return "";
  std::vector<std::string> loading;
  for (const auto& [id, member] : members_.members()) {
    if (layout_->addresses.contains(id) && member.ready_generation != generation_) {
      loading.push_back(id);
    }
  }
  return absl::StrCat("waiting for ", absl::StrJoin(loading, ", "), " to load shards");
}

std::vector<v1::MemberStatus> JobLifecycle::MemberStatuses() const {
  std::vector<v1::MemberStatus> statuses;
  for (const auto& [id, member] : members_.members()) {
    v1::MemberStatus& status = statuses.emplace_back(StatusOf(member, options_.now()));
    if (TakesPart(id)) status.set_memory_need_bytes(layout_->memory.at(id).total());
  }
  return statuses;
}

v1::Phase JobLifecycle::PhaseFor(const std::string& member) const {
  return over() || TakesPart(member) ? phase_ : v1::PHASE_WAITING;
}

v1::ClusterState JobLifecycle::StateFor(const std::string& member) const {
  const v1::Phase phase = PhaseFor(member);
  if (phase == phase_) return State();
  v1::ClusterState state;
  state.set_phase(phase);
  state.set_generation(generation_);
  state.set_waiting_for(
      members_.complete()
          ? "waiting for a step to end, from which on it takes part or may leave"
          : absl::StrCat("waiting for ", members_.Missing()));
  AddHandover(&state);
  return state;
}

void JobLifecycle::AddHandover(v1::ClusterState* state) const {
  if (taken_over_.has_value()) *state->mutable_handover() = *taken_over_;
  if (phase_ == v1::PHASE_RUNNING && handover_.planned()) {
    *state->mutable_upcoming() = handover_.Message(*layout_);
  }
}

v1::ClusterState JobLifecycle::Farewell() const {
  v1::ClusterState state;
  state.set_phase(v1::PHASE_FINISHED);
  state.set_generation(generation_);
  return state;
}

v1::ClusterState JobLifecycle::State() const {
  v1::ClusterState state;
  state.set_phase(phase_);
  state.set_generation(generation_);
  state.set_failure(failure_);
  state.set_waiting_for(WaitingFor());
  state.set_recovery(recovery_);
  if (!layout_.has_value()) return state;
  *state.mutable_job() = layout_->job;
  state.set_mode(options_.mode);
  state.set_evaluate_split(options_.evaluate_split);
  *state.mutable_placement() = layout_->placement;
  state.mutable_replicas()->Assign(layout_->replicas.begin(), layout_->replicas.end());
  AddAddresses(*layout_, state.mutable_servers());
  if (restore_.has_value() && !taken_over_.has_value()) {
    state.set_restore_from(restore_->folder);
  }
  AddHandover(&state);
  state.set_start_step(start_step());
  state.set_checkpoint_dir(options_.checkpoint_dir);
  state.set_without_standby(WithoutStandby());
  return state;
}

}  // namespace moe
