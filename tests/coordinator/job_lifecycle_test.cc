#include "server/coordinator/job_lifecycle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "tests/coordinator/controller_fixture.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using JobLifecycleTest = ControllerFixture;

TEST_F(JobLifecycleTest, NamesWhomItWaitsFor) {
  Create();
  EXPECT_EQ(State().waiting_for(), "waiting for 2 of 2 servers and 2 of 2 workers");
  ASSERT_TRUE(Join("server/a").ok());
  EXPECT_EQ(State().waiting_for(), "waiting for 1 of 2 servers and 2 of 2 workers");
  ASSERT_TRUE(Join("worker/a").ok());
  ASSERT_TRUE(Join("worker/b").ok());
  EXPECT_EQ(State().waiting_for(), "waiting for 1 of 2 servers");
  EXPECT_FALSE(State().has_job());
  ASSERT_TRUE(Join("server/b").ok());
  EXPECT_EQ(State().phase(), v1::PHASE_LOADING);
  EXPECT_EQ(State().waiting_for(), "waiting for server/a, server/b to load shards");
  ASSERT_TRUE(Beat("server/b", 1).ok());
  EXPECT_EQ(State().waiting_for(), "waiting for server/a to load shards");
  ASSERT_TRUE(Beat("server/a", 1).ok());
  EXPECT_EQ(State().phase(), v1::PHASE_RUNNING);
  EXPECT_EQ(State().waiting_for(), "");
}

TEST_F(JobLifecycleTest, GivesOutPlacementAndReplicas) {
  Create();
  JoinAll();
  const v1::ClusterState state = *Beat("worker/a");
  EXPECT_EQ(state.generation(), 1);
  EXPECT_EQ(state.mode(), v1::RUN_MODE_TRAIN);
  EXPECT_EQ(state.start_step(), 0);
  EXPECT_EQ(state.restore_from(), "");
  EXPECT_EQ(state.checkpoint_dir(), dir_);
  EXPECT_EQ(state.job().model().vocabulary(), 20) << "filled in from the data";
  EXPECT_EQ(state.placement().shards_size(), 2 + 4 + 3);
  std::set<std::string> servers;
  for (const auto& shard : state.placement().shards()) servers.insert(shard.server());
  EXPECT_THAT(servers, testing::ElementsAre("server/a", "server/b"));
  ASSERT_EQ(state.servers_size(), 2);
  EXPECT_EQ(state.servers(0).address(), "a:1");
  ASSERT_EQ(state.replicas_size(), 3);
  EXPECT_EQ(state.replicas(1).worker(), "worker/a");
  EXPECT_EQ(state.replicas(2).worker(), "worker/b");
}

TEST_F(JobLifecycleTest, RefusesShardsThatNoMessageHolds) {
  options_.job.mutable_model()->set_vocabulary(100'000'000);
  options_.servers = 1;
  options_.workers = 1;
  Create();
  ASSERT_TRUE(Join("server/a").ok());
  v1::RegisterRequest worker = Registration("worker/a");
  worker.mutable_data()->set_vocabulary(100'000'000);
  ASSERT_TRUE(Join(worker).ok());
  EXPECT_EQ(State().phase(), v1::PHASE_FAILED);
  EXPECT_THAT(State().failure(),
              AllOf(HasSubstr("dense shard dense/0 has 1,6"),
                    HasSubstr("and a message holds 1,073,740,800: "),
                    HasSubstr("embedding [100000000, 4] alone is larger")));
}

TEST_F(JobLifecycleTest, RefusesAJobThatMemoryDoesNotHold) {
  Create();
  for (const char* id : {"server/a", "worker/a", "worker/b"}) ASSERT_TRUE(Join(id).ok());
  v1::RegisterRequest small = Registration("server/b");
  small.set_memory_bytes(1 << 20);
  ASSERT_TRUE(Join(small).ok());
  EXPECT_EQ(State().phase(), v1::PHASE_FAILED);
  EXPECT_FALSE(State().has_job());
  EXPECT_THAT(State().failure(), HasSubstr("the job small needs 29.0 MiB ("));
  EXPECT_THAT(State().failure(),
              HasSubstr("on server/b (host pid 123), which has 1.0 MiB: "));
}

TEST_F(JobLifecycleTest, TellsWhatEachMemberNeeds) {
  Create();
  for (const char* id : {"server/a", "server/b", "worker/a"}) ASSERT_TRUE(Join(id).ok());
  v1::RegisterRequest last = Registration("worker/b");
  last.set_memory_bytes(uint64_t{8} << 30);
  v1::GetClusterStatusResponse status = controller_->GetClusterStatus();
  for (const v1::MemberStatus& member : status.members()) {
    EXPECT_EQ(member.memory_need_bytes(), 0);
  }
  ASSERT_TRUE(Join(last).ok());
  status = controller_->GetClusterStatus();
  for (const v1::MemberStatus& member : status.members()) {
    EXPECT_GT(member.memory_need_bytes(), 28 << 20);
  }
  EXPECT_EQ(status.members(0).memory_bytes(), 0);
  EXPECT_EQ(status.members(3).memory_bytes(), uint64_t{8} << 30);
}

TEST_F(JobLifecycleTest, LosesASilentMember) {
  options_.recoveries = 0;
  StartJob();
  for (int i = 0; i < 8; ++i) {
    Advance(absl::Seconds(1));
    for (const char* id : {"server/a", "worker/a", "worker/b"})
      ASSERT_TRUE(Beat(id).ok());
    if (i < 4) {
      ASSERT_TRUE(Beat("server/b", 0, "wave 1 of step 2 from worker/a").ok());
    }
  }
  ASSERT_EQ(State().phase(), v1::PHASE_RUNNING);
  Advance(absl::Seconds(1));
  const v1::ClusterState state = State();
  EXPECT_EQ(state.phase(), v1::PHASE_FAILED);
  EXPECT_EQ(
      state.failure(),
      "server/b (host pid 123) was lost: no heartbeat for 5.0 s; it was last waiting for "
      "wave 1 of step 2 from worker/a");
  EXPECT_EQ(Beat("server/b").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Beat("worker/a")->failure(), state.failure());
}

TEST_F(JobLifecycleTest, MemberThatLeavesEarlyFailsAJobWithoutRecoveries) {
  options_.recoveries = 0;
  StartJob();
  LeaveCluster("worker/b");
  EXPECT_EQ(State().failure(),
            "worker/b (host pid 123) left before the job was finished");
}

TEST_F(JobLifecycleTest, MemberThatIsLostWhileWaitingMayBeReplaced) {
  Create();
  ASSERT_TRUE(Join("worker/a").ok());
  ASSERT_TRUE(Join("worker/b").ok());
  Advance(absl::Seconds(6));
  EXPECT_EQ(State().phase(), v1::PHASE_WAITING);
  EXPECT_EQ(State().waiting_for(), "waiting for 2 of 2 servers and 2 of 2 workers");
  JoinAll();
  EXPECT_EQ(State().phase(), v1::PHASE_LOADING);
  EXPECT_EQ(incarnations_["worker/a"], 2);
}

TEST_F(JobLifecycleTest, FirstCauseStands) {
  StartJob();
  controller_->FailJob(Failure("worker/stranger", "mischief"));
  EXPECT_EQ(State().phase(), v1::PHASE_RUNNING);
  EXPECT_EQ(controller_->FailJob(Failure("worker/b", "the disk is full")).failure(), "");
  EXPECT_EQ(controller_->FailJob(Failure("server/a", "worker/b is gone")).failure(),
            "worker/b: the disk is full");
  EXPECT_EQ(State().failure(), "worker/b: the disk is full");
  EXPECT_THAT(Printed(), HasSubstr("failed: worker/b: the disk is full\n"));
  const absl::Status status = controller_->ReportStep(StepReport("worker/a", 0)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(status.message(), "worker/b: the disk is full");
}

TEST_F(JobLifecycleTest, ACauseNamesItsMemberOnce) {
  StartJob();
  controller_->FailJob(Failure("worker/b", "worker/b: the disk is full"));
  EXPECT_EQ(State().failure(), "worker/b: the disk is full");
}

TEST_F(JobLifecycleTest, ReportsNeedARunningJob) {
  Create();
  ASSERT_TRUE(Join("worker/a").ok());
  EXPECT_EQ(controller_->ReportStep(StepReport("worker/a", 0)).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(controller_->ReportStep(StepReport("worker/b", 0)).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(JobLifecycleTest, StoreRemembers) {
  StartJob();
  EXPECT_EQ(store_.Get("job/name")->value().value, "small");
  EXPECT_EQ(store_.Get("job/phase")->value().value, "PHASE_RUNNING");
  EXPECT_EQ(store_.Get("job/generation")->value().value, "1");
  EXPECT_EQ(store_.Get("members/server/a")->value().value, "1");
  EXPECT_THAT(store_.Get("job/running")->value().value, HasSubstr("layer1/group3"));
  Create();
  EXPECT_EQ(State().generation(), 2);
  EXPECT_EQ(store_.Get("job/phase")->value().value, "PHASE_WAITING");
}

}  // namespace
}  // namespace moe
