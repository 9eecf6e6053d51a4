// Checkpoints on demand, and jobs that get and give away members.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/coordinator/controller_fixture.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ScalingTest : public ControllerFixture {
 protected:
  std::string Scale(uint32_t servers, uint32_t workers,
                    const std::vector<std::string>& drain = {}) {
    v1::ScaleRequest request;
    request.set_servers(servers);
    request.set_workers(workers);
    for (const std::string& id : drain) request.add_drain(id);
    const auto response = controller_->Scale(request);
    return response.ok() ? response->plan() : std::string(response.status().message());
  }
  // Returns the step whose close shall have a cut; none: 0.
  uint64_t Report(const std::string& worker, uint64_t step) {
    const auto response = controller_->ReportStep(StepReport(worker, step));
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() && response->cut() ? response->cut_step() : 0;
  }
  void Commit(uint64_t steps) {
    BeginCut(steps);
    CommitBegun(steps);
  }
  void CommitBegun(uint64_t steps) {
    for (const v1::ReportShardFileRequest& report : WriteShards(steps)) {
      ASSERT_TRUE(controller_->ReportShardFile(report).ok());
    }
    std::vector<std::thread> waiting;
    for (const char* worker : {"worker/a", "worker/b"}) {
      waiting.emplace_back([this, request = Await(worker, steps)] {
        (void)controller_->AwaitCheckpoint(request, NeverCancelled());
      });
    }
    for (std::thread& thread : waiting) thread.join();
  }
  v1::Phase PhaseOf(const std::string& id) {
    const auto state = Beat(id, 0, "", State().generation());
    EXPECT_TRUE(state.ok()) << state.status();
    return state.ok() ? state->phase() : v1::PHASE_UNSPECIFIED;
  }
};

TEST_F(ScalingTest, ACutIsAskedForInTimeForEveryWorker) {
  StartJob();
  EXPECT_EQ(Report("worker/a", 0), 0);
  EXPECT_EQ(Report("worker/b", 0), 0);
  // This worker may have begun step 2 when the cut is asked for.
  EXPECT_EQ(Report("worker/a", 1), 0);
  std::thread waiting([this] {
    const auto taken = controller_->TakeCheckpoint(NeverCancelled());
    ASSERT_TRUE(taken.ok()) << taken.status();
    EXPECT_EQ(taken->checkpoint().step(), 4);
    EXPECT_EQ(taken->checkpoint().folder(), dir_ + "/" + StepFolderName(4));
  });
  while (Report("worker/b", 1) == 0) absl::SleepFor(absl::Milliseconds(1));
  for (const char* worker : {"worker/a", "worker/b"}) EXPECT_EQ(Report(worker, 2), 3);
  for (const char* worker : {"worker/a", "worker/b"}) EXPECT_EQ(Report(worker, 3), 3);
  Commit(4);
  waiting.join();
}

TEST_F(ScalingTest, ACheckpointOnDemandWaitsForTheOneUnderWay) {
  StartJob();
  BeginCut(1);
  std::thread waiting([this] {
    const auto taken = controller_->TakeCheckpoint(NeverCancelled());
    ASSERT_TRUE(taken.ok()) << taken.status();
    // Not the one that was under way when it was asked for.
    EXPECT_EQ(taken->checkpoint().step(), 4);
  });
  absl::SleepFor(absl::Milliseconds(50));
  controller_->Tick();
  for (const char* worker : {"worker/a", "worker/b"}) EXPECT_EQ(Report(worker, 1), 0);
  CommitBegun(1);
  while (Report("worker/b", 1) == 0) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(Report("worker/a", 2), 3);
  EXPECT_EQ(Report("worker/b", 2), 3);
  BeginCut(4);
  // It was for this one.
  EXPECT_EQ(Report("worker/b", 4), 0);
  CommitBegun(4);
  waiting.join();
}

TEST_F(ScalingTest, WhatWorkersDontWaitForIsNoChangeOver) {
  StartJob();
  BeginCut(1);
  EXPECT_EQ(Scale(3, 0), "3 servers and 2 workers, once 1 of 3 servers have joined");
  ASSERT_TRUE(Join("server/c").ok());
  for (const char* worker : {"worker/a", "worker/b"}) Report(worker, 1);
  CommitBegun(1);
  // Steps after it would be lost.
  EXPECT_EQ(State().generation(), 1);
  EXPECT_EQ(Report("worker/a", 2), 3);
  EXPECT_EQ(Report("worker/b", 2), 3);
  EXPECT_TRUE(ReportCut("worker/a", 4).cut_holds());
  EXPECT_TRUE(ReportCut("worker/b", 4).cut_holds());
  CommitBegun(4);
  EXPECT_EQ(State().generation(), 2);
  EXPECT_EQ(State().recovery(), "scaled to 3 servers and 2 workers");
}

TEST_F(ScalingTest, CheckpointsByTheClock) {
  options_.job.mutable_checkpointing()->set_every_minutes(2);
  StartJob();
  const auto pass = [&](int seconds) {
    for (int i = 0; i < seconds; ++i) {
      Advance(absl::Seconds(1));
      BeatAll();
    }
  };
  pass(118);
  EXPECT_EQ(Report("worker/a", 0), 0);
  pass(4);
  EXPECT_EQ(Report("worker/b", 0), 2);
}

TEST_F(ScalingTest, KeepsTheLastCheckpoints) {
  options_.job.mutable_checkpointing()->set_keep_last(2);
  StartJob();
  for (const uint64_t steps : {1, 2, 3}) Commit(steps);
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/" + StepFolderName(1)));
  EXPECT_TRUE(std::filesystem::exists(dir_ + "/" + StepFolderName(2)));
  EXPECT_TRUE(std::filesystem::exists(dir_ + "/" + StepFolderName(3)));
}

TEST_F(ScalingTest, TakesMembersInAtACheckpoint) {
  StartJob();
  EXPECT_EQ(Scale(3, 0), "3 servers and 2 workers, once 1 of 3 servers have joined");
  EXPECT_EQ(Report("worker/a", 0), 0) << "there is nobody yet to take in";
  ASSERT_TRUE(Join("server/c").ok());
  EXPECT_EQ(PhaseOf("server/c"), v1::PHASE_WAITING);
  EXPECT_EQ(PhaseOf("server/a"), v1::PHASE_RUNNING);
  controller_->Tick();
  EXPECT_EQ(Report("worker/b", 0), 2);
  EXPECT_THAT(Servers(), ElementsAre("server/a", "server/b"));
  Commit(3);
  EXPECT_EQ(State().phase(), v1::PHASE_WAITING);
  EXPECT_EQ(State().generation(), 2);
  EXPECT_EQ(State().recovery(), "scaled to 3 servers and 2 workers");
  controller_->Tick();
  for (const char* id : {"server/a", "server/b", "server/c", "worker/a", "worker/b"}) {
    EXPECT_NE(PhaseOf(id), v1::PHASE_RUNNING) << id;
  }
  EXPECT_EQ(State().phase(), v1::PHASE_LOADING);
  EXPECT_EQ(State().start_step(), 3);
  EXPECT_THAT(Servers(), ElementsAre("server/a", "server/b", "server/c"));
}

TEST_F(ScalingTest, TheLastOfTooManyLeaveWell) {
  StartJob();
  EXPECT_EQ(Scale(1, 0), "1 server and 2 workers, from the next checkpoint on");
  EXPECT_EQ(PhaseOf("server/b"), v1::PHASE_RUNNING) << "as long as its shards are needed";
  EXPECT_EQ(Report("worker/a", 0), 1);
  Commit(2);
  EXPECT_EQ(PhaseOf("server/b"), v1::PHASE_FINISHED);
  controller_->Tick();
  for (const char* id : {"server/a", "worker/a", "worker/b"}) PhaseOf(id);
  EXPECT_EQ(State().phase(), v1::PHASE_LOADING);
  EXPECT_THAT(Servers(), ElementsAre("server/a"));
}

TEST_F(ScalingTest, DrainsWhomItIsTold) {
  StartJob();
  EXPECT_EQ(Scale(0, 0, {"server/a", "worker/a"}),
            "1 server and 1 worker, from the next checkpoint on");
  EXPECT_EQ(Scale(0, 0, {"server/b"}), "a job needs at least one server and one worker");
  Commit(1);
  EXPECT_EQ(PhaseOf("server/a"), v1::PHASE_FINISHED);
  EXPECT_EQ(PhaseOf("worker/a"), v1::PHASE_FINISHED);
}

TEST_F(ScalingTest, FewerThanMemoryHoldsAreRefusedWithTheFigures) {
  StartJob();
  // What either of two servers needs is less than what one does alone.
  uint64_t need = 0;
  const v1::GetClusterStatusResponse status = controller_->GetClusterStatus();
  for (const v1::MemberStatus& member : status.members()) {
    if (member.kind() != v1::MEMBER_KIND_SERVER) continue;
    need = std::max<uint64_t>(need, member.memory_need_bytes());
  }
  Create();
  for (const char* id : {"worker/a", "worker/b"}) ASSERT_TRUE(Join(id).ok());
  for (const char* id : {"server/a", "server/b"}) {
    v1::RegisterRequest request = Registration(id);
    request.set_memory_bytes(need);
    ASSERT_TRUE(Join(request).ok());
  }
  ASSERT_EQ(State().phase(), v1::PHASE_LOADING) << State().failure();
  for (const char* id : {"server/a", "server/b"}) {
    ASSERT_TRUE(Beat(id, State().generation()).ok());
  }
  EXPECT_THAT(Scale(1, 0), HasSubstr("the job small needs"));
  EXPECT_EQ(Report("worker/a", 0), 0);
  EXPECT_EQ(PhaseOf("server/b"), v1::PHASE_RUNNING);
}

TEST_F(ScalingTest, OneThatIsLostBeforeItTakesPartIsNoLoss) {
  StartJob();
  Scale(3, 0);
  ASSERT_TRUE(Join("server/c").ok());
  LeaveCluster("server/c");
  EXPECT_EQ(State().phase(), v1::PHASE_RUNNING);
  EXPECT_EQ(State().generation(), 1);
  EXPECT_EQ(Scale(2, 0), "2 servers and 2 workers, as it is");
}

TEST_F(ScalingTest, WhoWasToLeaveStaysWhereALossLeavesAGap) {
  StartJob();
  EXPECT_EQ(Scale(1, 3), "1 server and 3 workers, once 1 of 3 workers have joined");
  LeaveCluster("worker/b");
  EXPECT_THAT(Printed(), HasSubstr("the scaling that was asked for is off; ask again\n"));
  EXPECT_EQ(State().waiting_for(), "waiting for 1 of 2 workers");
  EXPECT_EQ(PhaseOf("server/b"), v1::PHASE_WAITING);
  ASSERT_TRUE(Join("worker/b").ok());
  controller_->Tick();
  for (const char* id : {"server/a", "server/b", "worker/a"}) PhaseOf(id);
  EXPECT_THAT(Servers(), ElementsAre("server/a", "server/b"));
}

TEST_F(ScalingTest, AWishMayBeTakenBack) {
  StartJob();
  Scale(1, 0);
  EXPECT_EQ(Scale(2, 0), "2 servers and 2 workers, as it is");
  EXPECT_EQ(PhaseOf("server/b"), v1::PHASE_RUNNING);
  Scale(3, 0);
  ASSERT_TRUE(Join("server/c").ok());
  EXPECT_EQ(Scale(0, 0, {"server/c"}), "2 servers and 2 workers, as it is");
  EXPECT_EQ(PhaseOf("server/c"), v1::PHASE_FINISHED) << "it never took part";
}

TEST_F(ScalingTest, TwoThatAreLostAtOnce) {
  StartJob();
  Scale(1, 1);
  // The first one ends the generation, and with it the second one's membership.
  for (int i = 0; i < 7; ++i) {
    Advance(absl::Seconds(1));
    for (const char* id : {"server/a", "worker/a"}) ASSERT_TRUE(Beat(id).ok());
  }
  EXPECT_EQ(State().generation(), 2);
  EXPECT_EQ(controller_->GetClusterStatus().members_size(), 2);
}

TEST_F(ScalingTest, OneThatIsLostWhileItIsToLeaveLeavesAtOnce) {
  StartJob();
  Scale(1, 0);
  LeaveCluster("server/b");
  controller_->Tick();
  for (const char* id : {"server/a", "worker/a", "worker/b"}) PhaseOf(id);
  EXPECT_EQ(State().phase(), v1::PHASE_LOADING);
  EXPECT_THAT(Servers(), ElementsAre("server/a"));
}

TEST_F(ScalingTest, ACoordinatorThatIsStartedAgainKnowsTheSize) {
  StartJob();
  Scale(1, 0);
  Report("worker/a", 0);
  Commit(2);
  controller_->Tick();
  for (const char* id : {"server/a", "worker/a", "worker/b"}) PhaseOf(id);
  ASSERT_EQ(State().phase(), v1::PHASE_LOADING);
  options_.interrupted = true;
  options_.rejoin_timeout = absl::Seconds(20);
  Create();
  EXPECT_EQ(State().waiting_for(), "waiting for 1 of 1 server and 2 of 2 workers");
  EXPECT_EQ(State().recovery(), "the coordinator was started again");
  // And it doesn't wait for ever for those that were there.
  ASSERT_TRUE(Join("server/a").ok());
  ASSERT_TRUE(Join("worker/a").ok());
  for (int i = 0; i < 22; ++i) {
    Advance(absl::Seconds(1));
    for (const char* id : {"server/a", "worker/a"}) PhaseOf(id);
  }
  EXPECT_EQ(State().phase(), v1::PHASE_LOADING);
}

TEST_F(ScalingTest, NeedsAJobThatTrains) {
  Create();
  EXPECT_EQ(
      Scale(3, 0),
      "the job isn't training now, it is waiting for 2 of 2 servers and 2 of 2 workers");
  EXPECT_EQ(controller_->TakeCheckpoint(NeverCancelled()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace moe
