#include "common/membership/member.h"

#include <glog/logging.h>
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/base/available_memory.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "common/membership/coordinator_stub.h"
#include "common/membership/report_queue.h"
#include "common/net/grpc_status.h"
#include "proto/moe/v1/coordinator.grpc.pb.h"

namespace moe {
namespace {

constexpr absl::Duration kRegisterAttempt = absl::Seconds(1);
constexpr absl::Duration kRegisterPause = absl::Milliseconds(100);
constexpr absl::Duration kRegisterNotice = absl::Seconds(3);
// Of a call that the coordinator may hold back; it is then repeated.
constexpr absl::Duration kHeldCall = absl::Seconds(10);
constexpr absl::Duration kRetryPause = absl::Milliseconds(200);
// Of calls for which nobody waits.
constexpr absl::Duration kParting = absl::Seconds(2);

// The failures of a network, or of a coordinator that is just starting, stops or has no thread free,
// and calls that were cut short to ask another one; all else is an answer.
bool IsTransient(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE ||
         status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED ||
         status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED ||
         status.error_code() == grpc::StatusCode::CANCELLED;
}

bool IsOver(v1::Phase phase) {
  return phase == v1::PHASE_FINISHED || phase == v1::PHASE_FAILED;
}

grpc::Status Register(v1::CoordinatorService::Stub& stub,
                      const v1::RegisterRequest& registration, absl::Time deadline,
                      v1::RegisterResponse* response) {
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(absl::ToChronoTime(deadline));
  return stub.Register(&context, registration, response);
}

std::string HostName() {
  char name[256] = "";
  gethostname(name, sizeof(name) - 1);
  return name;
}

uint64_t RandomNonce() {
  std::random_device device;
  uint64_t nonce = 0;
  while (nonce == 0) nonce = (uint64_t{device()} << 32) | device();
  return nonce;
}

std::chrono::system_clock::time_point DeadlineIn(absl::Duration duration) {
  return absl::ToChronoTime(absl::Now() + duration);
}

class GrpcMember final : public Member {
 public:
  GrpcMember(Options options, std::unique_ptr<CoordinatorStub> stub,
             const v1::RegisterResponse& registered)
      : options_(std::move(options)),
        stub_(std::move(stub)),
        id_(registered.member()),
        heartbeat_(absl::Milliseconds(std::max(1, registered.heartbeat_ms()))),
        lease_(absl::Milliseconds(std::max(1, registered.lease_ms()))),
        incarnation_(registered.incarnation()),
        nonce_(options_.registration.nonce()),
        registration_(options_.registration),
        queue_(ReportQueue::Options(),
               [this](const ReportQueue::Report& report) { return Send(report); }),
        heartbeat_thread_([this] { HeartbeatLoop(); }) {
    absl::MutexLock lock(&mutex_);
    registration_.set_nonce(RandomNonce());
  }

  ~GrpcMember() override { Leave(); }

  const std::string& id() const override { return id_; }
  uint64_t incarnation() const override {
    absl::MutexLock lock(&mutex_);
    return incarnation_;
  }

  absl::StatusOr<v1::ClusterState> WaitFor(
      const std::string& reason, absl::Duration timeout,
      const std::function<bool(const v1::ClusterState&)>& ready) override {
    const absl::Time deadline = absl::Now() + timeout;
    const WaitingFor waiting(*this, reason);
    uint64_t seen = 0;
    while (true) {
      v1::ClusterState state;
      {
        absl::MutexLock lock(&mutex_);
        while (health_.ok() && !left_ && state_version_ == seen) {
          if (changed_.WaitWithDeadline(&mutex_, deadline) && state_version_ == seen) {
            return absl::DeadlineExceededError(
                absl::StrCat("waited ", FormatTimeSpan(timeout), " for ", reason,
                             state_.waiting_for().empty() ? "" : "; the cluster is ",
                             state_.waiting_for()));
          }
        }
        if (!health_.ok()) return health_;
        if (left_) return absl::CancelledError("this process has left the cluster");
        seen = state_version_;
        state = state_;
      }
      if (IsOver(state.phase()) || ready(state)) return state;
    }
  }

  void Enter(uint64_t generation) override {
    absl::MutexLock lock(&mutex_);
    entered_ = generation;
    placement_version_ =
        state_.generation() == generation ? state_.placement().version() : 0;
    step_ = state_.generation() == generation ? state_.start_step() : 0;
    left_generation_ = absl::OkStatus();
    callbacks_.clear();
    state_callback_ = nullptr;
    lost_.clear();
    files_.clear();
    queue_.Clear();
    NoteGeneration(state_.generation(), state_.recovery());
  }

  absl::Status health() const override {
    absl::MutexLock lock(&mutex_);
    return health_;
  }

  absl::Status generation_health() const override {
    absl::MutexLock lock(&mutex_);
    return Trouble();
  }

  void OnTrouble(std::function<void(const absl::Status&)> callback) override {
    absl::Status trouble;
    {
      absl::MutexLock lock(&mutex_);
      trouble = Trouble();
      if (trouble.ok()) {
        callbacks_.push_back(std::move(callback));
        return;
      }
    }
    callback(trouble);
  }

  void OnState(std::function<void(const v1::ClusterState&)> callback) override {
    absl::MutexLock lock(&mutex_);
    state_callback_ = std::move(callback);
  }

  void GoOnWithout(const std::string& server, const std::string& why) override {
    LOG(WARNING) << "goes on without " << server << ": " << why;
    absl::MutexLock lock(&mutex_);
    v1::LostServer& lost = lost_.emplace_back();
    lost.set_server(server);
    lost.set_cause(why);
    HeartbeatNow();
  }

  std::string Describe() const override {
    absl::MutexLock lock(&mutex_);
    if (const absl::Status trouble = Trouble(); !trouble.ok()) {
      return std::string(trouble.message());
    }
    if (state_.phase() == v1::PHASE_FINISHED) return "the job is finished";
    if (state_.generation() == 0) return "has joined the coordinator";
    std::string text = absl::StrCat("generation ", state_.generation());
    if (state_.phase() != v1::PHASE_RUNNING) {
      absl::StrAppend(&text, state_.waiting_for().empty() ? "" : ", ",
                      state_.waiting_for());
      return text;
    }
    if (const uint64_t steps = std::max(step_, state_.start_step()); steps > 0) {
      absl::StrAppend(&text, ", step ", steps);
    }
    if (!waiting_for_.empty()) absl::StrAppend(&text, ", waits for ", waiting_for_);
    return text;
  }

  void SetReady(uint64_t generation) override {
    absl::MutexLock lock(&mutex_);
    if (ready_generation_ == generation) return;
    ready_generation_ = generation;
    HeartbeatNow();
  }

  void SetArrived(uint64_t version) override {
    absl::MutexLock lock(&mutex_);
    arrived_ = version;
    HeartbeatNow();
  }

  void SetWaitingFor(const std::string& reason) override {
    absl::MutexLock lock(&mutex_);
    waiting_for_ = reason;
  }

  void SetTimes(const v1::MemberTimes& times) override {
    absl::MutexLock lock(&mutex_);
    times_ = times;
  }

  void Fail(const absl::Status& cause) override {
    v1::FailJobRequest request;
    request.set_member(id_);
    request.set_cause(std::string(cause.message()));
    request.set_peer_lost(IsLostPeer(cause));
    {
      absl::MutexLock lock(&mutex_);
      request.set_nonce(nonce_);
      if (left_ || IsOver(state_.phase()) || !left_generation_.ok()) return;
      request.set_generation(entered_);
    }
    bool said = false;
    while (true) {
      v1::FailJobResponse response;
      grpc::ClientContext context;
      context.set_deadline(DeadlineIn(kParting));
      const auto stub = stub_->get();
      const grpc::Status status = stub->FailJob(&context, request, &response);
      stub_->NoteAnswer(stub, status);
      absl::MutexLock lock(&mutex_);
      if (status.ok()) {
        // What failed here came of that.
        if (!response.failure().empty()) {
          SetTrouble(absl::AbortedError(response.failure()));
        }
        NoteGeneration(response.generation(), request.cause());
        return;
      }
      if (!std::exchange(said, true)) {
        LOG(WARNING) << "could not yet tell the coordinator what failed ("
                     << request.cause() << "): " << status.error_message();
      }
      if (!IsTransient(status)) return;
      // It may have ended with the job, and its last answer is still on the way.
      const absl::Time pause = absl::Now() + kRetryPause;
      while (Trouble().ok() && !left_ && !IsOver(state_.phase()) &&
             !changed_.WaitWithDeadline(&mutex_, pause)) {
      }
      if (!Trouble().ok() || left_ || IsOver(state_.phase())) return;
    }
  }

  void Cancel() override {
    absl::MutexLock lock(&mutex_);
    SetTrouble(absl::CancelledError("this process was told to stop"));
  }

  absl::StatusOr<std::optional<v1::ReportStepResponse>> ReportStep(
      v1::ReportStepRequest request) override {
    request.set_member(id_);
    {
      absl::MutexLock lock(&mutex_);
      RETURN_IF_ERROR(Trouble());
      request.set_generation(entered_);
      step_ = request.step() + 1;
    }
    const WaitingFor waiting(*this, "the coordinator");
    return queue_.Add(std::move(request));
  }

  absl::Status ReportEvaluation(v1::ReportEvaluationRequest request) override {
    request.set_member(id_);
    {
      absl::MutexLock lock(&mutex_);
      RETURN_IF_ERROR(Trouble());
      request.set_generation(entered_);
    }
    return queue_.Add(std::move(request));
  }

  absl::Status ReportShardFile(v1::ReportShardFileRequest request) override {
    request.set_member(id_);
    {
      absl::MutexLock lock(&mutex_);
      RETURN_IF_ERROR(Trouble());
      request.set_generation(entered_);
      files_.push_back(request);
    }
    return queue_.Add(std::move(request));
  }

  absl::StatusOr<v1::AwaitCheckpointResponse> AwaitCheckpoint(uint64_t step) override {
    RETURN_IF_ERROR(Drain());
    v1::AwaitCheckpointRequest request;
    request.set_step(step);
    return Call<v1::AwaitCheckpointResponse>(
        std::move(request), absl::StrCat("the checkpoint of step ", step),
        &v1::CoordinatorService::Stub::AwaitCheckpoint);
  }

  absl::Status AwaitHandover(uint64_t step) override {
    RETURN_IF_ERROR(Drain());
    v1::AwaitHandoverRequest request;
    request.set_step(step);
    return Call<v1::AwaitHandoverResponse>(
               std::move(request),
               absl::StrCat("the others to take step ", step, ", with which shards move"),
               &v1::CoordinatorService::Stub::AwaitHandover)
        .status();
  }

  absl::Status FinishWork() override {
    RETURN_IF_ERROR(Drain());
    {
      absl::MutexLock lock(&mutex_);
      finished_generation_ = entered_;
    }
    return Call<v1::FinishWorkResponse>(v1::FinishWorkRequest(), "the coordinator",
                                        &v1::CoordinatorService::Stub::FinishWork)
        .status();
  }

  void Leave() override {
    {
      absl::MutexLock lock(&mutex_);
      if (left_) return;
      left_ = true;
      HeartbeatNow();
      for (grpc::ClientContext* call : calls_) call->TryCancel();
    }
    heartbeat_thread_.join();
    v1::LeaveRequest request;
    request.set_member(id_);
    {
      absl::MutexLock lock(&mutex_);
      request.set_incarnation(incarnation_);
      request.set_nonce(nonce_);
    }
    v1::LeaveResponse response;
    grpc::ClientContext context;
    context.set_deadline(DeadlineIn(kParting));
    const grpc::Status status = stub_->get()->Leave(&context, request, &response);
    absl::MutexLock lock(&mutex_);
    // A coordinator whose job is over needn't be there any more.
    if (!status.ok() && health_.ok() && !IsOver(state_.phase())) {
      LOG(WARNING) << "could not say goodbye to the coordinator: "
                   << status.error_message();
    }
  }

 private:
  // Shows `reason` in status, then what was there before.
  class WaitingFor {
   public:
    WaitingFor(GrpcMember& member, const std::string& reason) : member_(member) {
      absl::MutexLock lock(&member_.mutex_);
      before_ = std::exchange(member_.waiting_for_, reason);
    }
    ~WaitingFor() { member_.SetWaitingFor(before_); }

   private:
    GrpcMember& member_;
    std::string before_;
  };

  // Makes a call known, so that trouble cancels it.
  class RunningCall {
   public:
    RunningCall(GrpcMember& member, grpc::ClientContext* context)
        : member_(member), context_(context) {
      absl::MutexLock lock(&member_.mutex_);
      member_.calls_.insert(context_);
      if (!member_.Trouble().ok() || member_.left_) context_->TryCancel();
    }
    ~RunningCall() {
      absl::MutexLock lock(&member_.mutex_);
      member_.calls_.erase(context_);
    }

   private:
    GrpcMember& member_;
    grpc::ClientContext* const context_;
  };

  template <typename Response, typename Request>
  absl::StatusOr<Response> Call(Request request, const std::string& waiting_for,
                                grpc::Status (v1::CoordinatorService::Stub::*method)(
                                    grpc::ClientContext*, const Request&, Response*)) {
    request.set_member(id_);
    {
      absl::MutexLock lock(&mutex_);
      request.set_generation(entered_);
    }
    const WaitingFor waiting(*this, waiting_for);
    return Repeat<Response>(request, method);
  }

  // All that was reported has been answered.
  absl::Status Drain() {
    const WaitingFor waiting(*this, "the coordinator to take what was reported");
    return queue_.Drain();
  }

  // For the queue, on its thread.
  absl::StatusOr<v1::ReportStepResponse> Send(const ReportQueue::Report& report) {
    if (const auto* step = std::get_if<v1::ReportStepRequest>(&report)) {
      return Repeat<v1::ReportStepResponse>(*step,
                                            &v1::CoordinatorService::Stub::ReportStep);
    }
    absl::Status status;
    if (const auto* evaluation = std::get_if<v1::ReportEvaluationRequest>(&report)) {
      status = Repeat<v1::ReportEvaluationResponse>(
                   *evaluation, &v1::CoordinatorService::Stub::ReportEvaluation)
                   .status();
    } else {
      status = Repeat<v1::ReportShardFileResponse>(
                   std::get<v1::ReportShardFileRequest>(report),
                   &v1::CoordinatorService::Stub::ReportShardFile)
                   .status();
    }
    RETURN_IF_ERROR(status);
    return v1::ReportStepResponse();
  }

  // Repeats a call, which the coordinator may hold back, until it is answered or health()
  // is bad.
  template <typename Response, typename Request>
  absl::StatusOr<Response> Repeat(Request request,
                                  grpc::Status (v1::CoordinatorService::Stub::*method)(
                                      grpc::ClientContext*, const Request&, Response*)) {
    while (true) {
      {
        absl::MutexLock lock(&mutex_);
        RETURN_IF_ERROR(Trouble());
        request.set_nonce(nonce_);
      }
      Response response;
      grpc::Status status;
      {
        grpc::ClientContext context;
        context.set_deadline(DeadlineIn(kHeldCall));
        const auto stub = stub_->get();
        const RunningCall running(*this, &context);
        status = (stub.get()->*method)(&context, request, &response);
        stub_->NoteAnswer(stub, status);
      }
      if (status.ok()) return response;
      absl::MutexLock lock(&mutex_);
      RETURN_IF_ERROR(Trouble());
      if (left_) return absl::CancelledError("this process has left the cluster");
      // The job failed or the generation is over, and the heartbeat doesn't know yet.
      if (status.error_code() == grpc::StatusCode::ABORTED) {
        return absl::AbortedError(status.error_message());
      }
      if (!IsTransient(status)) {
        return FromGrpcStatus(status, absl::StrCat("coordinator ", options_.coordinator));
      }
      if (status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED) {
        changed_.WaitWithTimeout(&mutex_, kRetryPause);
      }
    }
  }

  void HeartbeatNow() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    heartbeat_due_ = true;
    if (heartbeat_call_ != nullptr) heartbeat_call_->TryCancel();
    changed_.SignalAll();
  }

  void SetTrouble(absl::Status trouble) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!health_.ok() || IsOver(state_.phase())) return;
    health_ = std::move(trouble);
    for (grpc::ClientContext* call : calls_) call->TryCancel();
    HeartbeatNow();
  }

  absl::Status Trouble() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return health_.ok() ? left_generation_ : health_;
  }

  // The cluster is in this generation; cause: why it left the one before.
  void NoteGeneration(uint64_t generation, const std::string& cause)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (entered_ == 0 || generation == 0 || generation == entered_ ||
        !left_generation_.ok()) {
      return;
    }
    left_generation_ =
        absl::AbortedError(absl::StrCat("generation ", entered_, " is over: ", cause));
    for (grpc::ClientContext* call : calls_) call->TryCancel();
    // What this process knows is of the generation before, unless a heartbeat has just told it.
    if (state_.generation() == entered_) state_ = v1::ClusterState();
    changed_.SignalAll();
  }

  // Sends heartbeats until the process leaves or the job is over, and calls back in
  // trouble.
  void HeartbeatLoop() {
    absl::Time last_answer = absl::Now();
    absl::MutexLock lock(&mutex_);
    while (!left_) {
      if (const absl::Status trouble = Trouble(); !trouble.ok() && !callbacks_.empty()) {
        const auto callbacks = std::exchange(callbacks_, {});
        mutex_.Unlock();
        for (const auto& callback : callbacks) callback(trouble);
        mutex_.Lock();
        continue;
      }
      if (over_) {
        changed_.Wait(&mutex_);
        continue;
      }
      const absl::Time start = absl::Now();
      Beat(&last_answer);
      // The coordinator holds the answer back for as long as the state is the same; this
      // is for one that doesn't answer or that answers early.
      while (!left_ && !heartbeat_due_ && !over_ &&
             (Trouble().ok() || callbacks_.empty()) &&
             !changed_.WaitWithDeadline(&mutex_, start + heartbeat_)) {
      }
    }
  }

  void Beat(absl::Time* last_answer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    heartbeat_due_ = false;
    v1::HeartbeatRequest request;
    request.set_member(id_);
    request.set_incarnation(incarnation_);
    request.set_nonce(nonce_);
    request.set_ready_generation(ready_generation_);
    request.set_waiting_for(waiting_for_);
    *request.mutable_times() = times_;
    request.set_seen_phase(state_.phase());
    request.set_seen_generation(state_.generation());
    request.set_seen_upcoming(state_.upcoming().placement().version());
    request.set_arrived(arrived_);
    if (left_generation_.ok()) request.set_generation(entered_);
    request.mutable_lost()->Assign(lost_.begin(), lost_.end());
    request.set_step(step_);
    request.set_placement_version(placement_version_);
    request.set_finished_generation(finished_generation_);

    v1::HeartbeatResponse response;
    grpc::ClientContext context;
    context.set_deadline(DeadlineIn(heartbeat_ + std::max(lease_ / 2, absl::Seconds(1))));
    heartbeat_call_ = &context;
    mutex_.Unlock();
    if (options_.step) request.set_step(options_.step());
    const auto stub = stub_->get();
    const grpc::Status status = stub->Heartbeat(&context, request, &response);
    // A heartbeat is answered within its deadline by any coordinator that lives.
    const bool silent = status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED;
    const bool moved = silent ? stub_->Move(stub) : stub_->NoteAnswer(stub, status);
    std::string why;
    if (!status.ok() && absl::Now() - *last_answer > options_.coordinator_timeout) {
      const absl::Status checked = stub_->CheckConnections();
      why = checked.ok() ? status.error_message() : std::string(checked.message());
    }
    mutex_.Lock();
    heartbeat_call_ = nullptr;
    if (moved) {
      for (grpc::ClientContext* call : calls_) call->TryCancel();
    }
    if (left_) return;

    if (status.ok()) {
      *last_answer = absl::Now();
      const bool moved = response.state().phase() != state_.phase() ||
                         response.state().generation() != state_.generation();
      state_ = std::move(*response.mutable_state());
      ++state_version_;
      changed_.SignalAll();
      NoteGeneration(state_.generation(), state_.recovery());
      std::erase_if(files_, [this](const v1::ReportShardFileRequest& file) {
        return file.step() <= state_.checkpoint_step();
      });
      const uint64_t before = std::exchange(coordinator_, response.coordinator());
      if (before != 0 && before != coordinator_) ReportAgain();
      heartbeat_due_ = heartbeat_due_ || moved;
      over_ = IsOver(state_.phase());
      if (state_.phase() == v1::PHASE_FAILED && health_.ok()) {
        health_ = absl::AbortedError(state_.failure());
        for (grpc::ClientContext* call : calls_) call->TryCancel();
      }
      if (state_callback_ && state_.phase() == v1::PHASE_RUNNING &&
          state_.generation() == entered_) {
        const auto callback = state_callback_;
        const v1::ClusterState state = state_;
        mutex_.Unlock();
        callback(state);
        mutex_.Lock();
      }
      return;
    }
    if (status.error_code() == grpc::StatusCode::CANCELLED && heartbeat_due_) return;
    if (status.error_code() == grpc::StatusCode::NOT_FOUND) {
      Rejoin(status);
    } else if (!IsTransient(status)) {
      over_ = true;
      SetTrouble(
          FromGrpcStatus(status, absl::StrCat("coordinator ", options_.coordinator)));
    } else if (!why.empty()) {
      SetTrouble(absl::UnavailableError(
          absl::StrCat("lost the coordinator ", options_.coordinator, ": no answer for ",
                       FormatTimeSpan(absl::Now() - *last_answer), ": ", why)));
    }
  }

  // Another coordinator answers, which may not know what was told to the one before.
  void ReportAgain() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (entered_ == 0 || !Trouble().ok()) return;
    LOG(INFO) << "another coordinator goes on with generation " << entered_;
    queue_.Repeat(files_);
  }

  // The coordinator doesn't know this process: it was started again, or the lease ran out. What was
  // of the generation entered is over either way; the process offers itself anew.
  void Rejoin(const grpc::Status& refusal) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    NoteGeneration(std::numeric_limits<uint64_t>::max(), refusal.error_message());
    LOG_EVERY_N(WARNING, 20) << refusal.error_message() << "; registering again";
    v1::RegisterResponse response;
    const v1::RegisterRequest registration = registration_;
    mutex_.Unlock();
    const auto stub = stub_->get();
    const grpc::Status status =
        Register(*stub, registration, absl::Now() + kRegisterAttempt, &response);
    stub_->NoteAnswer(stub, status);
    mutex_.Lock();
    if (status.ok()) {
      incarnation_ = response.incarnation();
      nonce_ = registration.nonce();
      registration_.set_nonce(RandomNonce());
      ready_generation_ = 0;
      arrived_ = 0;
      // Nothing is known of the cluster that it is a member of now.
      state_ = v1::ClusterState();
      heartbeat_due_ = true;
    } else if (!IsTransient(status)) {
      over_ = true;
      SetTrouble(absl::AbortedError(
          absl::StrCat(refusal.error_message(), "; ", status.error_message())));
    }
  }

  const Options options_;
  const std::unique_ptr<CoordinatorStub> stub_;
  const std::string id_;
  const absl::Duration heartbeat_;
  const absl::Duration lease_;

  mutable absl::Mutex mutex_;
  uint64_t incarnation_ ABSL_GUARDED_BY(mutex_);
  // Of the registration that made it a member.
  uint64_t nonce_ ABSL_GUARDED_BY(mutex_);
  // For the next time, should this membership be lost.
  v1::RegisterRequest registration_ ABSL_GUARDED_BY(mutex_);
  // The generation that this process works in; 0 before the first.
  uint64_t entered_ ABSL_GUARDED_BY(mutex_) = 0;
  // ABORTED once the cluster isn't in that one any more.
  absl::Status left_generation_ ABSL_GUARDED_BY(mutex_);
  // Of that generation, for heartbeats.
  uint64_t placement_version_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t step_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t finished_generation_ ABSL_GUARDED_BY(mutex_) = 0;
  // Which coordinator has answered last; 0: none yet.
  uint64_t coordinator_ ABSL_GUARDED_BY(mutex_) = 0;
  // What was reported of cuts that aren't committed.
  std::vector<v1::ReportShardFileRequest> files_ ABSL_GUARDED_BY(mutex_);
  absl::CondVar changed_;  // state, health, or a heartbeat is due
  v1::ClusterState state_ ABSL_GUARDED_BY(mutex_);
  uint64_t state_version_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status health_ ABSL_GUARDED_BY(mutex_);
  bool left_ ABSL_GUARDED_BY(mutex_) = false;
  // No more heartbeats: the job is over, or the coordinator doesn't know this process.
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  bool heartbeat_due_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t ready_generation_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t arrived_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string waiting_for_ ABSL_GUARDED_BY(mutex_);
  v1::MemberTimes times_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::function<void(const absl::Status&)>> callbacks_
      ABSL_GUARDED_BY(mutex_);
  std::function<void(const v1::ClusterState&)> state_callback_ ABSL_GUARDED_BY(mutex_);
  // Servers of the generation without which the process goes on.
  std::vector<v1::LostServer> lost_ ABSL_GUARDED_BY(mutex_);
  std::set<grpc::ClientContext*> calls_ ABSL_GUARDED_BY(mutex_);
  grpc::ClientContext* heartbeat_call_ ABSL_GUARDED_BY(mutex_) = nullptr;
  ReportQueue queue_;
  std::thread heartbeat_thread_;  // last: it uses all the others
};

}  // namespace

bool IsLostPeer(const absl::Status& cause) {
  return absl::IsUnavailable(cause) || absl::IsDeadlineExceeded(cause);
}

absl::StatusOr<std::unique_ptr<Member>> Member::Join(Options options) {
  auto stub = std::make_unique<CoordinatorStub>(options.coordinator, options.tls);
  if (options.registration.host().empty()) options.registration.set_host(HostName());
  if (options.registration.pid() == 0) options.registration.set_pid(getpid());
  options.registration.set_nonce(RandomNonce());
  if (options.registration.memory_bytes() == 0) {
    const AvailableMemory memory = ReadAvailableMemory();
    options.registration.set_memory_bytes(memory.bytes);
    options.registration.set_memory_pool(memory.machine);
  }
  const absl::Time start = absl::Now();
  const absl::Time deadline = start + options.join_timeout;
  absl::Time next_notice = start + kRegisterNotice;
  bool checked = false;
  while (true) {
    if (options.cancelled && options.cancelled()) {
      return absl::CancelledError("this process was told to stop");
    }
    v1::RegisterResponse response;
    const auto asked = stub->get();
    const grpc::Status status =
        Register(*asked, options.registration,
                 std::min(deadline, absl::Now() + kRegisterAttempt), &response);
    if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
      stub->Move(asked);
    } else {
      stub->NoteAnswer(asked, status);
    }
    if (status.ok()) {
      return std::make_unique<GrpcMember>(std::move(options), std::move(stub), response);
    }
    if (!IsTransient(status)) {
      return FromGrpcStatus(status, absl::StrCat("coordinator ", options.coordinator));
    }
    if (!std::exchange(checked, true) || absl::Now() >= next_notice) {
      RETURN_IF_ERROR(stub->CheckConnections());
    }
    const absl::Time now = absl::Now();
    if (now + kRegisterPause >= deadline) {
      return absl::UnavailableError(absl::StrCat(
          "no coordinator answered at ", options.coordinator, " within ",
          FormatTimeSpan(options.join_timeout), ": ", status.error_message()));
    }
    if (now >= next_notice) {
      LOG(INFO) << "waiting for the coordinator at " << options.coordinator << " since "
                << FormatTimeSpan(now - start) << ": " << status.error_message();
      next_notice = now + kRegisterNotice;
    }
    absl::SleepFor(kRegisterPause);
  }
}

}  // namespace moe
