// Members against a real coordinator, over loopback.
#include "common/membership/member.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/base/protocol.h"
#include "common/net/channel.h"
#include "proto/moe/v1/coordinator.grpc.pb.h"
#include "proto/moe/v1/status.grpc.pb.h"
#include "server/coordinator/coordinator.h"
#include "tests/coordinator/small_job.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(30);

bool IsRunning(const v1::ClusterState& state) {
  return state.phase() == v1::PHASE_RUNNING;
}
bool IsLoading(const v1::ClusterState& state) {
  return state.phase() == v1::PHASE_LOADING;
}
bool Never(const v1::ClusterState&) { return false; }

class MemberTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = absl::StrCat(testing::TempDir(), "/member_",
                        testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(dir_);
    options_.job = SmallJob();
    options_.checkpoint_dir = dir_;
    options_.workers = 2;
    // Long, so that what arrives sooner wasn't waited for.
    options_.heartbeat = absl::Seconds(10);
    options_.lease = absl::Seconds(60);
  }
  void StartCoordinator() {
    auto coordinator = Coordinator::Start(options_);
    ASSERT_TRUE(coordinator.ok()) << coordinator.status();
    coordinator_ = *std::move(coordinator);
  }

  Member::Options MemberOptions(const std::string& id) {
    Member::Options options;
    options.coordinator = coordinator_->address();
    options.join_timeout = kPatience;
    v1::RegisterRequest& request = options.registration;
    const bool server = id.starts_with("server/");
    request.set_kind(server ? v1::MEMBER_KIND_SERVER : v1::MEMBER_KIND_WORKER);
    request.set_name(id.substr(7));
    request.set_protocol_version(kProtocolVersion);
    request.set_numerics("fingerprint");
    request.set_host("host");
    request.set_pid(123);
    if (server) {
      request.set_address(request.name() + ":1");
    } else {
      request.mutable_data()->set_sha256("da7a");
      request.mutable_data()->set_vocabulary(20);
    }
    return options;
  }
  std::unique_ptr<Member> Join(const std::string& id) {
    auto member = Member::Join(MemberOptions(id));
    EXPECT_TRUE(member.ok()) << member.status();
    return member.ok() ? *std::move(member) : nullptr;
  }
  // One server and two workers, up to RUNNING.
  void StartJob() {
    StartCoordinator();
    for (const char* id : {"server/s", "worker/a", "worker/b"}) {
      members_.push_back(Join(id));
      ASSERT_NE(members_.back(), nullptr);
      EXPECT_EQ(members_.back()->id(), id);
    }
    const auto loading = members_[0]->WaitFor("the placement", kPatience, IsLoading);
    ASSERT_TRUE(loading.ok()) << loading.status();
    members_[0]->SetReady(loading->generation());
    for (auto& member : members_) {
      const auto running = member->WaitFor("the start", kPatience, IsRunning);
      ASSERT_TRUE(running.ok()) << running.status();
      ASSERT_EQ(running->phase(), v1::PHASE_RUNNING);
      member->Enter(running->generation());
    }
  }

  std::string dir_;
  Coordinator::Options options_;
  std::unique_ptr<Coordinator> coordinator_;
  std::vector<std::unique_ptr<Member>> members_;  // server, workers
};

TEST_F(MemberTest, StartsWithoutWaitingForHeartbeats) {
  const absl::Time start = absl::Now();
  StartJob();
  EXPECT_LT(absl::Now() - start, options_.heartbeat);
}

TEST_F(MemberTest, TellsWhatMemoryItMayUse) {
  StartCoordinator();
  auto of_machine = Join("worker/a");
  Member::Options options = MemberOptions("worker/b");
  options.registration.set_memory_bytes(12345);
  auto limited = Member::Join(options);
  ASSERT_TRUE(limited.ok()) << limited.status();
  const auto stub =
      v1::ClusterStatusService::NewStub(MakeChannel(coordinator_->address()));
  grpc::ClientContext context;
  v1::GetClusterStatusResponse status;
  ASSERT_TRUE(stub->GetClusterStatus(&context, {}, &status).ok());
  ASSERT_EQ(status.members_size(), 2);
  EXPECT_GT(status.members(0).memory_bytes(), 1 << 20);
  EXPECT_EQ(status.members(1).memory_bytes(), 12345);
}

TEST_F(MemberTest, RefusalComesBackWithItsReason) {
  StartCoordinator();
  auto first = Join("worker/a");
  const absl::Status second = Member::Join(MemberOptions("worker/a")).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.message()), HasSubstr("worker/a (host pid 123) lives"));
}

TEST_F(MemberTest, WaitsForACoordinatorThatIsNotThereYet) {
  StartCoordinator();
  const Member::Options options = MemberOptions("worker/a");
  options_.listen = coordinator_->address();
  coordinator_.reset();
  absl::StatusOr<std::unique_ptr<Member>> member;
  std::thread joining([&] { member = Member::Join(options); });
  StartCoordinator();
  joining.join();
  EXPECT_TRUE(member.ok()) << member.status();
}

TEST_F(MemberTest, GivesUpOnACoordinatorThatNeverComes) {
  StartCoordinator();
  Member::Options options = MemberOptions("worker/a");
  coordinator_.reset();
  options.join_timeout = absl::Milliseconds(300);
  const absl::Status status = Member::Join(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(options.coordinator));
}

TEST_F(MemberTest, CancelledWhileThereIsNoCoordinator) {
  StartCoordinator();
  Member::Options options = MemberOptions("worker/a");
  coordinator_.reset();
  std::atomic<int> asked = 0;
  options.cancelled = [&] { return ++asked == 3; };
  const absl::Status status = Member::Join(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
}

TEST_F(MemberTest, WaitTellsWhatTheClusterWaitsFor) {
  StartCoordinator();
  auto member = Join("worker/a");
  const absl::Status status =
      member->WaitFor("the start", absl::Milliseconds(300), Never).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("for the start; the cluster is waiting for"));
}

TEST_F(MemberTest, RunsAJobToItsEnd) {
  StartJob();
  std::vector<std::thread> workers;
  for (int w : {1, 2}) {
    workers.emplace_back([&, w] {
      v1::ReportEvaluationRequest evaluation;
      evaluation.set_split(v1::SPLIT_TEST);
      v1::ReportStepRequest step;
      step.set_total_steps(1);
      for (uint32_t replica :
           w == 1 ? std::vector<uint32_t>{0, 1} : std::vector<uint32_t>{2}) {
        v1::ReplicaLoss loss;
        loss.set_replica(replica);
        loss.set_loss_sum(10);
        loss.set_tokens(5);
        *evaluation.add_losses() = loss;
        *step.add_losses() = loss;
      }
      ASSERT_TRUE(members_[w]->ReportStep(step).ok());
      ASSERT_TRUE(members_[w]->ReportEvaluation(evaluation).ok());
      ASSERT_TRUE(members_[w]->FinishWork().ok());
    });
  }
  for (std::thread& worker : workers) worker.join();
  for (auto& member : members_) {
    const auto state = member->WaitFor("the end", kPatience, Never);
    ASSERT_TRUE(state.ok()) << state.status();
    EXPECT_EQ(state->phase(), v1::PHASE_FINISHED);
    EXPECT_TRUE(member->health().ok());
  }
  EXPECT_TRUE(coordinator_->Wait().ok());
  // Nobody is there to say goodbye to.
  for (auto& member : members_) member->Leave();
}

TEST_F(MemberTest, FailureReachesEverybody) {
  StartJob();
  absl::Notification troubled;
  absl::Status trouble;
  members_[0]->OnTrouble([&](const absl::Status& status) {
    trouble = status;
    troubled.Notify();
  });
  absl::Status held;
  std::thread waiting([&] { held = members_[1]->AwaitCheckpoint(3).status(); });
  members_[2]->Fail(absl::InternalError("the disk is full"));
  waiting.join();
  EXPECT_EQ(held.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(held.message(), "worker/b: the disk is full");
  ASSERT_TRUE(troubled.WaitForNotificationWithTimeout(kPatience));
  EXPECT_EQ(trouble.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(trouble.message(), "worker/b: the disk is full");
  for (auto& member : members_) {
    const auto state = member->WaitFor("the end", kPatience, Never);
    EXPECT_EQ(state.status().code(), absl::StatusCode::kAborted);
    EXPECT_EQ(member->health().message(), "worker/b: the disk is full");
    bool at_once = false;
    member->OnTrouble([&](const absl::Status&) { at_once = true; });
    EXPECT_TRUE(at_once);
  }
  EXPECT_EQ(coordinator_->Wait().message(), "worker/b: the disk is full");
}

// Whatever the member's own heartbeat has heard.
TEST_F(MemberTest, AFailureThatFollowsAnotherHasItsCause) {
  StartJob();
  members_[1]->Fail(absl::InternalError("the disk is full"));
  members_[2]->Fail(absl::InternalError("worker/a is gone"));
  EXPECT_EQ(members_[2]->health().message(), "worker/a: the disk is full");
}

TEST_F(MemberTest, LeavingEarlyFailsAJobWithoutRecoveries) {
  options_.recoveries = 0;
  StartJob();
  members_[1]->Leave();
  const auto state = members_[0]->WaitFor("the end", kPatience, Never);
  EXPECT_THAT(std::string(state.status().message()),
              HasSubstr("worker/a (host pid 123) left"));
}

TEST_F(MemberTest, CancelEndsEveryWait) {
  StartJob();
  absl::Notification troubled;
  members_[1]->OnTrouble([&](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
    troubled.Notify();
  });
  absl::Status waited;
  absl::Status held;
  std::thread waiting([&] {
    waited = members_[1]->WaitFor("nothing", absl::InfiniteDuration(), Never).status();
  });
  std::thread holding([&] { held = members_[1]->AwaitCheckpoint(3).status(); });
  members_[1]->Cancel();
  waiting.join();
  holding.join();
  EXPECT_EQ(waited.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(held.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(troubled.WaitForNotificationWithTimeout(kPatience));
}

TEST_F(MemberTest, NoticesThatTheCoordinatorIsGone) {
  options_.heartbeat = absl::Milliseconds(50);
  options_.lease = absl::Milliseconds(500);
  StartCoordinator();
  Member::Options options = MemberOptions("worker/a");
  options.coordinator_timeout = absl::Seconds(1);
  auto member = Member::Join(std::move(options));
  ASSERT_TRUE(member.ok()) << member.status();
  ASSERT_TRUE((*member)
                  ->WaitFor("an answer", kPatience,
                            [](const v1::ClusterState& state) {
                              return state.phase() == v1::PHASE_WAITING;
                            })
                  .ok());
  coordinator_.reset();
  const auto state = (*member)->WaitFor("the end", kPatience, Never);
  // It says that it stops, to whom it still can.
  EXPECT_TRUE(absl::IsUnavailable(state.status()) || absl::IsAborted(state.status()))
      << state.status();
}

TEST_F(MemberTest, TheLossOfAnotherEndsTheGeneration) {
  options_.heartbeat = absl::Milliseconds(50);
  options_.lease = absl::Milliseconds(500);
  StartJob();
  absl::Notification troubled;
  members_[1]->OnTrouble([&](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
    troubled.Notify();
  });
  members_[2]->Fail(absl::UnavailableError("server/s is gone"));
  // From the answer, or from a heartbeat that was faster.
  EXPECT_THAT(std::string(members_[2]->generation_health().message()),
              AllOf(HasSubstr("generation 1 is over: "), HasSubstr("server/s is gone")));
  EXPECT_TRUE(troubled.WaitForNotificationWithTimeout(kPatience));
  EXPECT_EQ(members_[1]->ReportStep(v1::ReportStepRequest()).status().code(),
            absl::StatusCode::kAborted);
  for (auto& member : members_) EXPECT_TRUE(member->health().ok());
  // All were there all along, so it goes on at once.
  EXPECT_TRUE(members_[0]->WaitFor("the next", kPatience, IsLoading).ok());
}

TEST_F(MemberTest, SilentMemberIsLost) {
  options_.heartbeat = absl::Milliseconds(50);
  options_.lease = absl::Milliseconds(500);
  options_.recoveries = 0;
  StartCoordinator();
  // Registers and is never heard of again, like a process that is killed.
  const auto stub = v1::CoordinatorService::NewStub(MakeChannel(coordinator_->address()));
  grpc::ClientContext context;
  v1::RegisterResponse response;
  auto server = Join("server/s");
  auto worker = Join("worker/a");
  ASSERT_TRUE(
      stub->Register(&context, MemberOptions("worker/b").registration, &response).ok());
  const auto state = server->WaitFor("the end", kPatience, Never);
  EXPECT_EQ(state.status().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(state.status().message()),
              HasSubstr("worker/b (host pid 123) was lost: no heartbeat for"));
}

}  // namespace
}  // namespace moe
