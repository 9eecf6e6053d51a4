#include "tests/bench/pace.h"

#include <optional>
#include <utility>

#include "absl/time/clock.h"

namespace moe {
namespace {

class PacedMember final : public Member {
 public:
  PacedMember(std::unique_ptr<Member> member, Pace& pace)
      : member_(std::move(member)), pace_(pace) {}

  absl::StatusOr<std::optional<v1::ReportStepResponse>> ReportStep(
      v1::ReportStepRequest request) override {
    auto response = member_->ReportStep(std::move(request));
    pace_.AwaitNext();
    return response;
  }

  const std::string& id() const override { return member_->id(); }
  uint64_t incarnation() const override { return member_->incarnation(); }
  absl::StatusOr<v1::ClusterState> WaitFor(
      const std::string& reason, absl::Duration timeout,
      const std::function<bool(const v1::ClusterState&)>& ready) override {
    return member_->WaitFor(reason, timeout, ready);
  }
  void Enter(uint64_t generation) override { member_->Enter(generation); }
  absl::Status health() const override { return member_->health(); }
  absl::Status generation_health() const override { return member_->generation_health(); }
  void OnTrouble(std::function<void(const absl::Status&)> callback) override {
    member_->OnTrouble(std::move(callback));
  }
  void OnState(std::function<void(const v1::ClusterState&)> callback) override {
    member_->OnState(std::move(callback));
  }
  void GoOnWithout(const std::string& server, const std::string& why) override {
    member_->GoOnWithout(server, why);
  }
  std::string Describe() const override { return member_->Describe(); }
  void SetReady(uint64_t generation) override { member_->SetReady(generation); }
  void SetArrived(uint64_t version) override { member_->SetArrived(version); }
  void SetWaitingFor(const std::string& reason) override {
    member_->SetWaitingFor(reason);
  }
  void SetTimes(const v1::MemberTimes& times) override { member_->SetTimes(times); }
  void Fail(const absl::Status& cause) override { member_->Fail(cause); }
  void Cancel() override { member_->Cancel(); }
  absl::Status ReportEvaluation(v1::ReportEvaluationRequest request) override {
    return member_->ReportEvaluation(std::move(request));
  }
  absl::Status ReportShardFile(v1::ReportShardFileRequest request) override {
    return member_->ReportShardFile(std::move(request));
  }
  absl::StatusOr<v1::AwaitCheckpointResponse> AwaitCheckpoint(uint64_t step) override {
    return member_->AwaitCheckpoint(step);
  }
  absl::Status AwaitHandover(uint64_t step) override {
    return member_->AwaitHandover(step);
  }
  absl::Status FinishWork() override { return member_->FinishWork(); }
  void Leave() override { member_->Leave(); }

 private:
  const std::unique_ptr<Member> member_;
  Pace& pace_;
};

}  // namespace

absl::StatusOr<absl::Duration> Pace::Take(int64_t steps, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  absl::MutexLock lock(&mutex_);
  const auto idle = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return taken_ == allowed_ || !over_.ok();
  };
  // The first step of all.
  if (!mutex_.AwaitWithDeadline(absl::Condition(&idle), deadline)) {
    return absl::DeadlineExceededError("the first step wasn't taken in time");
  }
  if (!over_.ok()) return over_;
  allowed_ += steps;
  const absl::Time start = absl::Now();
  if (!mutex_.AwaitWithDeadline(absl::Condition(&idle), deadline)) {
    return absl::DeadlineExceededError("a step wasn't taken in time");
  }
  if (!over_.ok()) return over_;
  return absl::Now() - start;
}

void Pace::AwaitNext() {
  absl::MutexLock lock(&mutex_);
  ++taken_;
  const auto may = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return taken_ < allowed_ || !over_.ok();
  };
  mutex_.Await(absl::Condition(&may));
}

void Pace::End(const absl::Status& cause) {
  absl::MutexLock lock(&mutex_);
  over_ = cause;
}

std::unique_ptr<Member> KeepPace(std::unique_ptr<Member> member, Pace& pace) {
  return std::make_unique<PacedMember>(std::move(member), pace);
}

}  // namespace moe
