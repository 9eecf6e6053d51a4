// A membership whose coordinator is the test.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/membership/member.h"

namespace moe::testing {

inline constexpr uint64_t kFakeIncarnation = 3;

// What a FakeMember and its test share; outlives the member.
class FakeCluster {
 public:
  void SetState(v1::ClusterState state) {
    absl::MutexLock lock(&mutex_);
    state_ = std::move(state);
    ++changes_;
  }
  // As before its first member.
  void Reset() {
    absl::MutexLock lock(&mutex_);
    state_ = v1::ClusterState();
    ++changes_;
    cancelled_ = false;
    ready_ = 0;
    failures_.clear();
  }
  void AwaitReady(uint64_t generation) {
    absl::MutexLock lock(&mutex_);
    const auto ready = [&] { return ready_ == generation || failures_.size() > 0; };
    mutex_.Await(absl::Condition(&ready));
  }
  void AwaitArrived(uint64_t version) {
    absl::MutexLock lock(&mutex_);
    const auto arrived = [&] { return arrived_ == version; };
    mutex_.Await(absl::Condition(&arrived));
  }
  // The first cause with which a member failed the job.
  std::string AwaitFailure() {
    absl::MutexLock lock(&mutex_);
    const auto failed = [&] { return !failures_.empty(); };
    mutex_.Await(absl::Condition(&failed));
    return failures_[0];
  }
  std::vector<std::string> failures() {
    absl::MutexLock lock(&mutex_);
    return failures_;
  }
  std::vector<v1::ReportShardFileRequest> files() {
    absl::MutexLock lock(&mutex_);
    return files_;
  }
  void AwaitFiles(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&] { return files_.size() >= count; };
    mutex_.Await(absl::Condition(&there));
  }
  v1::RegisterRequest registration() {
    absl::MutexLock lock(&mutex_);
    return registration_;
  }

 private:
  friend class FakeMember;
  absl::Mutex mutex_;
  v1::ClusterState state_;
  int changes_ = 0;
  bool cancelled_ = false;
  uint64_t ready_ = 0;
  uint64_t arrived_ = 0;
  v1::RegisterRequest registration_;
  std::vector<std::string> failures_;
  std::vector<v1::ReportShardFileRequest> files_;
};

class FakeMember : public Member {
 public:
  FakeMember(FakeCluster* cluster, const Options& options) : cluster_(*cluster) {
    const bool worker = options.registration.kind() == v1::MEMBER_KIND_WORKER;
    id_ = (worker ? "worker/" : "server/") + options.registration.name();
    absl::MutexLock lock(&cluster_.mutex_);
    cluster_.registration_ = options.registration;
  }

  const std::string& id() const override { return id_; }
  uint64_t incarnation() const override { return kFakeIncarnation; }
  absl::StatusOr<v1::ClusterState> WaitFor(
      const std::string&, absl::Duration,
      const std::function<bool(const v1::ClusterState&)>& ready) override {
    int seen = -1;
    while (true) {
      v1::ClusterState state;
      {
        absl::MutexLock lock(&cluster_.mutex_);
        const auto changed = [&] {
          return cluster_.cancelled_ || cluster_.changes_ != seen;
        };
        cluster_.mutex_.Await(absl::Condition(&changed));
        if (cluster_.cancelled_) return absl::CancelledError("told to stop");
        state = cluster_.state_;
        seen = cluster_.changes_;
      }
      if (state.phase() == v1::PHASE_FAILED) return absl::AbortedError(state.failure());
      if (state.phase() == v1::PHASE_FINISHED || ready(state)) return state;
    }
  }
  absl::Status health() const override {
    absl::MutexLock lock(&cluster_.mutex_);
    if (cluster_.cancelled_) return absl::CancelledError("told to stop");
    if (cluster_.state_.phase() == v1::PHASE_FAILED) {
      return absl::AbortedError(cluster_.state_.failure());
    }
    return absl::OkStatus();
  }
  void Enter(uint64_t generation) override {
    absl::MutexLock lock(&cluster_.mutex_);
    entered_ = generation;
  }
  absl::Status generation_health() const override {
    if (absl::Status status = health(); !status.ok()) return status;
    absl::MutexLock lock(&cluster_.mutex_);
    return entered_ == 0 || entered_ == cluster_.state_.generation()
               ? absl::OkStatus()
               : absl::AbortedError("the generation is over");
  }
  void OnTrouble(std::function<void(const absl::Status&)>) override {}
  void OnState(std::function<void(const v1::ClusterState&)>) override {}
  void GoOnWithout(const std::string&, const std::string&) override {}
  std::string Describe() const override { return "the test's"; }
  void SetReady(uint64_t generation) override {
    absl::MutexLock lock(&cluster_.mutex_);
    cluster_.ready_ = generation;
  }
  void SetArrived(uint64_t version) override {
    absl::MutexLock lock(&cluster_.mutex_);
    cluster_.arrived_ = version;
  }
  void SetWaitingFor(const std::string&) override {}
  void SetTimes(const v1::MemberTimes&) override {}
  void Fail(const absl::Status& cause) override {
    absl::MutexLock lock(&cluster_.mutex_);
    cluster_.failures_.push_back(std::string(cause.message()));
  }
  void Cancel() override {
    absl::MutexLock lock(&cluster_.mutex_);
    cluster_.cancelled_ = true;
  }
  absl::StatusOr<std::optional<v1::ReportStepResponse>> ReportStep(
      v1::ReportStepRequest) override {
    return v1::ReportStepResponse();
  }
  absl::Status ReportEvaluation(v1::ReportEvaluationRequest) override {
    return absl::OkStatus();
  }
  absl::Status ReportShardFile(v1::ReportShardFileRequest request) override {
    absl::MutexLock lock(&cluster_.mutex_);
    cluster_.files_.push_back(std::move(request));
    return absl::OkStatus();
  }
  absl::StatusOr<v1::AwaitCheckpointResponse> AwaitCheckpoint(uint64_t) override {
    return v1::AwaitCheckpointResponse();
  }
  absl::Status AwaitHandover(uint64_t) override { return absl::OkStatus(); }
  absl::Status FinishWork() override { return absl::OkStatus(); }
  void Leave() override {}

 private:
  FakeCluster& cluster_;
  std::string id_;
  uint64_t entered_ = 0;  // under the cluster's lock
};

}  // namespace moe::testing
