#include "server/coordinator/job_lifecycle.h"

#include <glog/logging.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

absl::StatusOr<uint64_t> GetCounter(Store& store, const std::string& key) {
  ASSIGN_OR_RETURN(const std::optional<Store::Entry> entry, store.Get(key));
  uint64_t count = 0;
  if (entry.has_value() && !absl::SimpleAtoi(entry->value, &count)) {
    return absl::DataLossError(absl::StrCat("state key ", key, " holds no number"));
  }
  return count;
}

absl::Status Put(Store& store, const std::string& key, const std::string& value) {
  ASSIGN_OR_RETURN(const std::optional<Store::Entry> entry, store.Get(key));
  return store.CompareAndSwap(key, entry.has_value() ? entry->version : 0, value)
      .status();
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
                                   : ""}) {}

absl::Status JobLifecycle::Begin() {
  ASSIGN_OR_RETURN(uint64_t generation, GetCounter(store_, "job/generation"));
  if (options_.restore.has_value()) {
    generation = std::max(generation, options_.restore->manifest.generation());
  }
  generation_ = generation + 1;
  RETURN_IF_ERROR(Put(store_, "job/generation", absl::StrCat(generation_)));
  RETURN_IF_ERROR(Put(store_, "job/name", options_.job.name()));
  RETURN_IF_ERROR(Put(store_, "job/phase", v1::Phase_Name(phase_)));
  if (options_.restore.has_value()) {
    progress_.Line(absl::StrCat("starting from ", options_.restore->folder, "  digest ",
                                options_.restore->manifest.digest().substr(0, 16)));
  }
  PrintWaiting();
  return absl::OkStatus();
}

absl::StatusOr<const MemberRecord*> JobLifecycle::Join(
    const v1::RegisterRequest& request) {
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
    RETURN_IF_ERROR(Put(store_, key, absl::StrCat(incarnation + 1)));
    const MemberRecord& member = members_.Add(request, incarnation + 1, options_.now());
    LOG(INFO) << Describe(member) << " has joined"
              << (request.address().empty() ? "" : " at ") << request.address();
  }
  return members_.Find(id);
}

void JobLifecycle::Lose(const std::string& id, const std::string& how) {
  const std::string text = absl::StrCat(Describe(*members_.Find(id)), " ", how);
  members_.Remove(id);
  if (phase_ == v1::PHASE_WAITING) {
    // Nothing is lost yet, so another process may take the place.
    progress_.Line(text);
  } else if (!over()) {
    Fail(text);
  }
}

void JobLifecycle::Advance() {
  if (phase_ == v1::PHASE_WAITING && members_.complete()) StartLoading();
  if (phase_ != v1::PHASE_LOADING) return;
  for (const std::string& id : members_.Ids(v1::MEMBER_KIND_SERVER)) {
    if (members_.Find(id)->ready_generation != generation_) return;
  }
  StartRunning();
}

void JobLifecycle::StartLoading() {
  absl::StatusOr<Layout> layout =
      MakeLayout(options_.job, options_.mode == v1::RUN_MODE_TRAIN, members_);
  if (!layout.ok()) {
    Fail(std::string(layout.status().message()));
    return;
  }
  std::string placement;
  CHECK(google::protobuf::util::MessageToJsonString(layout->placement, &placement).ok());
  if (const absl::Status status = Put(store_, "job/placement", placement); !status.ok()) {
    Fail(absl::StrCat("coordinator: ", std::string(status.message())));
    return;
  }
  layout_ = *std::move(layout);
  Enter(v1::PHASE_LOADING);
}

void JobLifecycle::StartRunning() {
  Enter(v1::PHASE_RUNNING);
  if (phase_ != v1::PHASE_RUNNING) return;
  progress_.Line(absl::StrCat(
      options_.mode == v1::RUN_MODE_EVALUATE
          ? absl::StrCat("evaluating on the ", SplitName(options_.evaluate_split),
                         " text")
          : absl::StrCat("training ", options_.job.name()),
      " on ", options_.servers, options_.servers == 1 ? " server" : " servers", " and ",
      options_.workers, options_.workers == 1 ? " worker" : " workers"));
}

void JobLifecycle::FinishWork(const std::string& worker) {
  members_.Find(worker)->finished = true;
  for (const std::string& id : members_.Ids(v1::MEMBER_KIND_WORKER)) {
    if (!members_.Find(id)->finished) return;
  }
  Enter(v1::PHASE_FINISHED);
}

void JobLifecycle::Fail(const std::string& cause) { End("failed", cause); }

void JobLifecycle::FailBy(const std::string& member, const std::string& cause) {
  const bool named = absl::StartsWith(cause, absl::StrCat(member, ":")) ||
                     absl::StartsWith(cause, absl::StrCat(member, " "));
  const std::string text = named ? cause : absl::StrCat(member, ": ", cause);
  if (members_.Find(member) == nullptr) {
    LOG(WARNING) << "ignored, from a stranger: " << text;
    return;
  }
  Fail(text);
}

void JobLifecycle::Stop(const std::string& cause) { End("stopped", cause); }

void JobLifecycle::End(const char* how, const std::string& cause) {
  if (over()) {
    LOG(WARNING) << "after the end of the job: " << cause;
    return;
  }
  failure_ = cause;
  Enter(v1::PHASE_FAILED);
  progress_.Line(absl::StrCat(how, ": ", cause));
}

void JobLifecycle::Enter(v1::Phase phase) {
  phase_ = phase;
  LOG(INFO) << "the job " << options_.job.name() << " enters " << v1::Phase_Name(phase);
  if (phase == v1::PHASE_RUNNING) running_since_ = options_.now();
  if (over()) over_since_ = options_.now();
  if (const absl::Status status = Put(store_, "job/phase", v1::Phase_Name(phase));
      !status.ok()) {
    // When the job is over there is nothing left to protect.
    if (over()) {
      LOG(ERROR) << "cannot record the end of the job: " << status.message();
    } else {
      Fail(absl::StrCat("coordinator: ", std::string(status.message())));
    }
  }
}

absl::Status JobLifecycle::CheckReporter(const std::string& member,
                                         v1::MemberKind kind) const {
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
  return absl::OkStatus();
}

void JobLifecycle::PrintWaiting() {
  const std::string waiting_for = WaitingFor();
  if (!waiting_for.empty()) progress_.Waiting(waiting_for, options_.now());
}

uint64_t JobLifecycle::start_step() const {
  return options_.restore.has_value() ? options_.restore->manifest.step() : 0;
}

std::string JobLifecycle::WaitingFor() const {
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

std::vector<v1::MemberStatus> JobLifecycle::MemberStatuses() const {
  std::vector<v1::MemberStatus> statuses;
  for (const auto& [id, member] : members_.members()) {
    v1::MemberStatus& status = statuses.emplace_back(StatusOf(member, options_.now()));
    if (layout_.has_value()) {
      status.set_memory_need_bytes(layout_->memory.at(id).total());
    }
  }
  return statuses;
}

v1::ClusterState JobLifecycle::State() const {
  v1::ClusterState state;
  state.set_phase(phase_);
  state.set_generation(generation_);
  state.set_failure(failure_);
  state.set_waiting_for(WaitingFor());
  if (!layout_.has_value()) return state;
  *state.mutable_job() = layout_->job;
  state.set_mode(options_.mode);
  state.set_evaluate_split(options_.evaluate_split);
  *state.mutable_placement() = layout_->placement;
  state.mutable_replicas()->Assign(layout_->replicas.begin(), layout_->replicas.end());
  for (const auto& [server, address] : layout_->addresses) {
    v1::ServerAddress* entry = state.add_servers();
    entry->set_server(server);
    entry->set_address(address);
  }
  if (options_.restore.has_value()) state.set_restore_from(options_.restore->folder);
  state.set_start_step(start_step());
  state.set_checkpoint_dir(options_.checkpoint_dir);
  return state;
}

}  // namespace moe
