#include "server/coordinator/job_controller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>

#include "tests/coordinator/controller_fixture.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

using JobControllerTest = ControllerFixture;

TEST_F(JobControllerTest, OlderHeartbeatTakesNothingBack) {
  Create();
  JoinAll();
  ASSERT_TRUE(Beat("server/a", 1).ok());
  ASSERT_TRUE(Beat("server/a", 0).ok());
  ASSERT_TRUE(Beat("server/b", 1).ok());
  EXPECT_EQ(State().phase(), v1::PHASE_RUNNING);
}

TEST_F(JobControllerTest, StrangersHeartbeat) {
  Create();
  EXPECT_EQ(Beat("worker/a").status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(Join("worker/a").ok());
  EXPECT_TRUE(Beat("worker/a").ok());
  incarnations_["worker/a"] = 7;
  EXPECT_EQ(Beat("worker/a").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(JobControllerTest, ChangeEndsAHeldHeartbeat) {
  options_.heartbeat = absl::Seconds(60);
  options_.lease = absl::Seconds(600);
  Create();
  ASSERT_TRUE(Join("worker/a").ok());
  v1::HeartbeatRequest request;
  request.set_member("worker/a");
  request.set_incarnation(1);
  request.set_seen_phase(v1::PHASE_WAITING);
  request.set_seen_generation(State().generation());
  v1::Phase phase = v1::PHASE_UNSPECIFIED;
  std::thread caller([&] {
    phase = controller_->Heartbeat(request, NeverCancelled())->state().phase();
  });
  controller_->Stop("stopped");
  caller.join();
  EXPECT_EQ(phase, v1::PHASE_FAILED);
}

TEST_F(JobControllerTest, DoesNotBlameMembersForItsOwnPause) {
  options_.recoveries = 0;
  StartJob();
  {
    absl::MutexLock lock(&mutex_);
    now_ += absl::Minutes(5);
  }
  controller_->Tick();
  EXPECT_EQ(State().phase(), v1::PHASE_RUNNING);
  Advance(absl::Seconds(6));
  EXPECT_EQ(State().phase(), v1::PHASE_FAILED);
}

TEST_F(JobControllerTest, HeldReportEndsWithItsCallerAndWithTheJob) {
  options_.recoveries = 0;
  StartJob();
  const auto request = EvaluationReport("worker/a", 2, v1::SPLIT_TEST);
  EXPECT_EQ(controller_->ReportEvaluation(request, [] { return true; }).status().code(),
            absl::StatusCode::kCancelled);
  absl::Status status;
  std::thread worker([&] {
    status = controller_->ReportEvaluation(request, NeverCancelled()).status();
  });
  LeaveCluster("worker/b");
  worker.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("worker/b (host pid 123) left"));
}

TEST_F(JobControllerTest, AJobThatStandsStillFails) {
  options_.report_timeout = absl::Seconds(20);
  options_.recoveries = 0;
  StartJob();
  double served = 0;
  const auto pass = [&](int seconds, bool servers_work) {
    for (int i = 0; i < seconds; ++i) {
      Advance(absl::Seconds(1));
      ASSERT_TRUE(Beat("server/b").ok());
      ASSERT_TRUE(Beat("worker/a").ok());
      ASSERT_TRUE(Beat("worker/b", 0, "the answer of server/a").ok());
      v1::HeartbeatRequest request;
      request.set_member("server/a");
      request.set_incarnation(incarnations_["server/a"]);
      request.mutable_times()->set_computing(servers_work ? ++served : served);
      request.mutable_times()->set_waiting(1000 + i);
      ASSERT_TRUE(controller_->Heartbeat(request, NeverCancelled()).ok());
    }
  };
  pass(15, false);
  ASSERT_TRUE(controller_->ReportStep(StepReport("worker/a", 0)).ok());
  pass(15, false);
  pass(40, true);
  pass(19, false);
  ASSERT_EQ(State().phase(), v1::PHASE_RUNNING) << State().failure();
  Advance(absl::Seconds(1));
  EXPECT_EQ(State().failure(),
            "no step, evaluation or checkpoint for 20 s; worker/a is computing, worker/b "
            "is waiting for the answer of server/a (if one takes that long, raise "
            "--report_timeout_s)");
}

TEST_F(JobControllerTest, StaysUntilTheLivingKnow) {
  StartJob();
  controller_->Stop("stopped");
  EXPECT_EQ(Beat("worker/a")->phase(), v1::PHASE_FAILED);
  LeaveCluster("worker/b");
  absl::Status status;
  std::thread waiter([&] { status = controller_->WaitUntilOver(); });
  // server/a and server/b are silent for a lease.
  Advance(absl::Seconds(6));
  waiter.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(status.message(), "stopped");
}

}  // namespace
}  // namespace moe
