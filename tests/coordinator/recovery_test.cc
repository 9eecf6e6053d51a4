// What the coordinator does when a member is lost.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "server/coordinator/restore.h"
#include "tests/coordinator/controller_fixture.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

class RecoveryTest : public ControllerFixture {
 protected:
  // Members that answer know the generation.
  void Hear(const std::vector<std::string>& ids) {
    for (const std::string& id : ids) {
      ASSERT_TRUE(Beat(id, 0, "", State().generation()).ok()) << id;
    }
  }
  // From WAITING with all members heard to RUNNING.
  void StartAgain() {
    ASSERT_EQ(State().phase(), v1::PHASE_LOADING) << State().waiting_for();
    for (const std::string& id : Servers()) {
      ASSERT_TRUE(Beat(id, State().generation(), "", State().generation()).ok());
    }
    ASSERT_EQ(State().phase(), v1::PHASE_RUNNING);
  }
  void TakeStep(uint64_t step) {
    for (const char* worker : {"worker/a", "worker/b"}) {
      ASSERT_TRUE(controller_->ReportStep(StepReport(worker, step)).ok());
    }
  }
  void TakeCheckpoint(uint64_t step) {
    BeginCut(step);
    for (const v1::ReportShardFileRequest& report : WriteShards(step)) {
      ASSERT_TRUE(controller_->ReportShardFile(report).ok());
    }
    std::thread first([&] {
      EXPECT_TRUE(
          controller_->AwaitCheckpoint(Await("worker/a", step), NeverCancelled()).ok());
    });
    EXPECT_TRUE(
        controller_->AwaitCheckpoint(Await("worker/b", step), NeverCancelled()).ok());
    first.join();
  }
  std::string Name(uint64_t step) {
    return absl::StrCat(dir_, "/", StepFolderName(step));
  }
};

TEST_F(RecoveryTest, ALostMemberOpensAGenerationFromTheLastCheckpoint) {
  StartJob();
  TakeStep(0);
  TakeCheckpoint(1);
  TakeStep(1);
  LeaveCluster("server/b");
  v1::ClusterState state = State();
  EXPECT_EQ(state.phase(), v1::PHASE_WAITING);
  EXPECT_EQ(state.generation(), 2);
  EXPECT_EQ(state.recovery(), "server/b (host pid 123) left before the job was finished");
  EXPECT_FALSE(state.has_job());
  EXPECT_THAT(Printed(), HasSubstr("recovering: server/b (host pid 123) left"));
  ASSERT_TRUE(Join("server/b").ok());
  controller_->Tick();
  EXPECT_THAT(Printed(), HasSubstr("generation 2 goes on from " + Name(1)));
  EXPECT_EQ(State().waiting_for(),
            "waiting for server/a, worker/a, worker/b to be heard");
  Hear({"server/a", "worker/a", "worker/b"});
  state = State();
  EXPECT_EQ(state.restore_from(), Name(1));
  EXPECT_EQ(state.start_step(), 1);
  StartAgain();
  TakeStep(1);
  EXPECT_EQ(controller_->GetClusterStatus().progress().step(), 2);
}

TEST_F(RecoveryTest, ACutThatAMemberWasLostInIsGone) {
  StartJob();
  TakeStep(0);
  TakeCheckpoint(1);
  TakeStep(1);
  BeginCut(3);
  auto files = WriteShards(3);
  const v1::ReportShardFileRequest last = files.back();
  files.pop_back();
  for (const v1::ReportShardFileRequest& report : files) {
    ASSERT_TRUE(controller_->ReportShardFile(report).ok());
  }
  TakeStep(3);
  LeaveCluster("server/b");
  ASSERT_TRUE(Join("server/b").ok());
  controller_->Tick();
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/" + CutFolderName(3, 1)));
  EXPECT_FALSE(controller_->GetClusterStatus().has_cut());
  EXPECT_EQ(controller_->ReportShardFile(last).code(), absl::StatusCode::kAborted);
  Hear({"server/a", "worker/a", "worker/b"});
  EXPECT_EQ(State().start_step(), 1);
  StartAgain();
  TakeStep(1);
  TakeStep(2);
  TakeCheckpoint(3);
  EXPECT_TRUE(std::filesystem::exists(Name(3)));
}

TEST_F(RecoveryTest, WithoutACheckpointItBeginsAnew) {
  StartJob();
  TakeStep(0);
  LeaveCluster("worker/a");
  ASSERT_TRUE(Join("worker/a").ok());
  controller_->Tick();
  Hear({"server/a", "server/b", "worker/b"});
  EXPECT_EQ(State().restore_from(), "");
  EXPECT_EQ(State().start_step(), 0);
  StartAgain();
}

TEST_F(RecoveryTest, ReportsOfAGenerationThatIsOverChangeNothing) {
  StartJob();
  const auto step = StepReport("worker/a", 0);
  const auto finish = Finish("worker/a");
  const auto files = WriteShards(1);
  const v1::FailJobRequest late = Failure("worker/a", "lost its temper");
  LeaveCluster("server/b");
  EXPECT_EQ(controller_->FailJob(late).generation(), 2);
  EXPECT_EQ(State().phase(), v1::PHASE_WAITING);
  ASSERT_TRUE(Join("server/b").ok());
  controller_->Tick();
  Hear({"server/a", "worker/a", "worker/b"});
  StartAgain();
  for (const absl::Status& status :
       {controller_->ReportStep(step).status(), controller_->FinishWork(finish),
        controller_->ReportShardFile(files[0])}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("generation 1 is over, the cluster is in 2: server/b"));
  }
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/" + CutFolderName(1, 1)));
}

TEST_F(RecoveryTest, WhoWaitsInAGenerationIsToldThatItIsOver) {
  StartJob();
  absl::Status waited;
  std::thread worker([&, request = Await("worker/a", 1)] {
    waited = controller_->AwaitCheckpoint(request, NeverCancelled()).status();
  });
  std::thread evaluating([&, request =
                                 EvaluationReport("worker/a", 1, v1::SPLIT_VALIDATION)] {
    EXPECT_EQ(controller_->ReportEvaluation(request, NeverCancelled()).status().code(),
              absl::StatusCode::kAborted);
  });
  absl::SleepFor(absl::Milliseconds(50));
  LeaveCluster("server/b");
  worker.join();
  evaluating.join();
  EXPECT_EQ(waited.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(waited.message()), HasSubstr("generation 1 is over: server/b"));
}

TEST_F(RecoveryTest, APeerThatIsLostEndsTheGenerationOnce) {
  StartJob();
  const v1::FailJobRequest first = Failure("worker/a", "server/b is gone", true);
  const v1::FailJobRequest second = Failure("worker/b", "server/b is gone", true);
  EXPECT_EQ(controller_->FailJob(first).generation(), 2);
  EXPECT_EQ(controller_->FailJob(second).generation(), 2);
  EXPECT_EQ(State().recovery(), "worker/a: server/b is gone");
}

TEST_F(RecoveryTest, OneThatIsNotHeardMayBeReplacedAtOnce) {
  StartJob();
  EXPECT_EQ(Join("server/b").code(), absl::StatusCode::kAlreadyExists);
  const uint64_t before = incarnations_["server/b"];
  controller_->FailJob(Failure("worker/a", "server/b is gone", true));
  Hear({"server/a", "worker/a", "worker/b"});
  EXPECT_EQ(Join("server/a").code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(Join("server/b").ok());
  EXPECT_GT(incarnations_["server/b"], before);
  controller_->Tick();
  StartAgain();
  v1::HeartbeatRequest old;
  old.set_member("server/b");
  old.set_incarnation(before);
  EXPECT_EQ(controller_->Heartbeat(old, NeverCancelled()).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(RecoveryTest, ANewcomerWaitsUntilItIsSeenWhetherThePlaceIsTaken) {
  StartJob();
  v1::RegisterRequest same = Registration("server/b");
  same.set_nonce(17);
  v1::RegisterRequest third = Registration("server/c");
  third.set_nonce(18);
  const auto heard = [&](std::vector<std::string> ids) {
    Advance(absl::Seconds(1));
    for (const std::string& id : ids) ASSERT_TRUE(Beat(id).ok()) << id;
  };
  EXPECT_EQ(Join(same).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Join(third).code(), absl::StatusCode::kUnavailable);
  heard({"server/a", "server/b"});
  EXPECT_EQ(Join(same).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Join(third).code(), absl::StatusCode::kFailedPrecondition);
  // Others come when the members are silent.
  same.set_nonce(19);
  third.set_nonce(20);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(Join(same).code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(Join(third).code(), absl::StatusCode::kUnavailable);
    heard({"server/a", "worker/a", "worker/b"});
  }
  Advance(absl::Seconds(1));
  EXPECT_EQ(State().phase(), v1::PHASE_WAITING) << "its lease is over";
  EXPECT_TRUE(Join(same).ok());
  EXPECT_EQ(Join(third).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(RecoveryTest, GoesOnWithoutThoseThatDontComeBack) {
  options_.rejoin_timeout = absl::Seconds(20);
  StartJob();
  LeaveCluster("server/b");
  LeaveCluster("worker/b");
  const auto wait = [&](int seconds) {
    for (int i = 0; i < seconds; ++i) {
      Advance(absl::Seconds(1));
      Hear({"server/a", "worker/a"});
    }
  };
  wait(18);
  EXPECT_EQ(State().phase(), v1::PHASE_WAITING);
  EXPECT_EQ(State().waiting_for(), "waiting for 1 of 2 servers and 1 of 2 workers");
  wait(3);
  EXPECT_THAT(Printed(), HasSubstr("going on without 1 of 2 servers and 1 of 2 workers"));
  EXPECT_THAT(Servers(), testing::ElementsAre("server/a"));
  const v1::ClusterState state = State();
  for (const v1::ReplicaAssignment& replica : state.replicas()) {
    EXPECT_EQ(replica.worker(), "worker/a");
  }
  StartAgain();
}

TEST_F(RecoveryTest, FailsAfterSoManyLossesInARow) {
  options_.recoveries = 2;
  StartJob();
  for (int loss = 0; loss < 4; ++loss) {
    if (loss == 2) TakeStep(0);
    controller_->FailJob(Failure("worker/a", "server/b is gone", true));
    ASSERT_EQ(State().phase(), v1::PHASE_WAITING) << loss;
    Hear({"server/a", "server/b", "worker/a", "worker/b"});
    controller_->Tick();
    StartAgain();
  }
  // Step 0 again is no progress.
  TakeStep(0);
  controller_->FailJob(Failure("worker/a", "server/b is gone", true));
  EXPECT_EQ(State().phase(), v1::PHASE_FAILED);
  EXPECT_EQ(
      State().failure(),
      "worker/a: server/b is gone; that ended the generation 5, and none since step 1 "
      "got any further (2 may fail in a row: --recoveries)");
}

TEST_F(RecoveryTest, ADamagedCheckpointFailsTheJob) {
  StartJob();
  TakeCheckpoint(1);
  std::ofstream(Name(1) + "/" + ShardFileName("dense/0")) << "flipped";
  LeaveCluster("server/b");
  controller_->Tick();
  EXPECT_EQ(State().phase(), v1::PHASE_FAILED);
  EXPECT_THAT(State().failure(), HasSubstr("cannot recover: "));
  EXPECT_THAT(State().failure(), HasSubstr("dense-0.safetensors"));
}

TEST_F(RecoveryTest, NobodyIsWaitedForWithoutEnd) {
  StartJob();
  LeaveCluster("server/a");
  LeaveCluster("server/b");
  for (int i = 0; i < 610 && State().phase() == v1::PHASE_WAITING; ++i) {
    Advance(absl::Seconds(1));
    Hear({"worker/a", "worker/b"});
  }
  EXPECT_EQ(State().phase(), v1::PHASE_FAILED);
  EXPECT_THAT(State().failure(),
              HasSubstr("server/a (host pid 123) left before the job was "
                        "finished; then waited 10 min 0 s for 2 of 2 servers"));
}

TEST_F(RecoveryTest, TheDataStaysTheSame) {
  StartJob();
  LeaveCluster("worker/a");
  LeaveCluster("worker/b");
  v1::RegisterRequest other = Registration("worker/a");
  other.mutable_data()->set_sha256("07e5");
  const absl::Status status = Join(other);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("reads other data"));
}

TEST_F(RecoveryTest, AnEvaluationBeginsAgain) {
  StartJob();
  TakeCheckpoint(1);
  options_.mode = v1::RUN_MODE_EVALUATE;
  auto restore = FindRestorePoint(Name(1));
  ASSERT_TRUE(restore.ok()) << restore.status();
  options_.restore = *restore;
  incarnations_.clear();
  StartJob();
  LeaveCluster("worker/a");
  ASSERT_TRUE(Join("worker/a").ok());
  Hear({"server/a", "server/b", "worker/b"});
  EXPECT_EQ(State().restore_from(), Name(1));
  StartAgain();
}

}  // namespace
}  // namespace moe
