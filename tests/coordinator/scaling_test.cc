// Checkpoints on demand, and jobs that get and give away members.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
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
  uint64_t Report(const std::string& worker, uint64_t step, bool cut = false) {
    v1::ReportStepRequest request = StepReport(worker, step);
    request.set_last_cut(cut ? step + 1 : 0);
    const auto response = controller_->ReportStep(request);
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
  v1::ClusterState StateOf(const std::string& id) {
    const auto state = Beat(id, 0, "", State().generation());
    EXPECT_TRUE(state.ok()) << state.status();
    return state.ok() ? *state : v1::ClusterState();
  }
  v1::Phase PhaseOf(const std::string& id) { return StateOf(id).phase(); }
  // The server has fetched what is to come to it.
  void Arrive(const std::string& id) {
    v1::HeartbeatRequest request;
    request.set_member(id);
    request.set_incarnation(incarnations_[id]);
    request.set_seen_generation(State().generation());
    request.set_arrived(State().upcoming().placement().version());
    EXPECT_TRUE(controller_->Heartbeat(request, NeverCancelled()).ok());
  }
  // The step after which the worker is to stop, as the answer to its report says; none: 0.
  uint64_t StopAfter(const std::string& worker, uint64_t step) {
    const auto response = controller_->ReportStep(StepReport(worker, step));
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() && response->handover() ? response->handover_step() : 0;
  }
  // Both workers stop after so many steps. What each is answered.
  std::vector<absl::Status> Stop(uint64_t steps) {
    std::vector<absl::Status> answers(2);
    std::vector<std::thread> waiting;
    for (int i = 0; i < 2; ++i) {
      v1::AwaitHandoverRequest request;
      request.set_member(i == 0 ? "worker/a" : "worker/b");
      request.set_step(steps);
      request.set_generation(State().generation());
      waiting.emplace_back([this, request, &answer = answers[i]] {
        answer = controller_->AwaitHandover(request, NeverCancelled()).status();
      });
    }
    for (std::thread& thread : waiting) thread.join();
    return answers;
  }
  // Up to the handover after step 1, with everybody whom it takes.
  void HandOver(const std::vector<std::string>& receivers) {
    EXPECT_EQ(StopAfter("worker/a", 0), 0);
    for (const std::string& id : receivers) Arrive(id);
    EXPECT_EQ(StopAfter("worker/b", 0), 1);
    for (const char* worker : {"worker/a", "worker/b"}) {
      EXPECT_EQ(StopAfter(worker, 1), 1);
    }
    for (const absl::Status& answer : Stop(2)) {
      EXPECT_TRUE(absl::IsAborted(answer)) << answer;
      EXPECT_THAT(answer.message(), HasSubstr("generation 1 is over: scaled to"));
    }
    EXPECT_EQ(State().phase(), v1::PHASE_LOADING);
    EXPECT_EQ(State().generation(), 2);
    EXPECT_EQ(State().start_step(), 2);
    EXPECT_EQ(State().restore_from(), "");
    EXPECT_EQ(State().handover().generation(), 1);
    EXPECT_EQ(State().handover().step(), 2);
  }
  // Up to the report of step 1, after which workers are to stop for a third server; it had a cut.
  void StopInACut() {
    Scale(3, 0);
    ASSERT_TRUE(Join("server/c").ok());
    EXPECT_EQ(StopAfter("worker/a", 0), 0);
    Arrive("server/c");
    EXPECT_EQ(StopAfter("worker/b", 0), 1);
    for (const char* worker : {"worker/a", "worker/b"}) {
      const v1::ReportStepResponse response = ReportCut(worker, 2);
      EXPECT_TRUE(response.cut_under_way());
      EXPECT_EQ(response.handover_step(), 1);
    }
  }
  // By shard.
  std::map<std::string, std::string> Places() {
    std::map<std::string, std::string> places;
    const v1::ClusterState state = State();
    for (const v1::ShardPlacement& placed : state.placement().shards()) {
      places[placed.shard()] = placed.server();
    }
    return places;
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
  for (const char* worker : {"worker/a", "worker/b"}) {
    EXPECT_EQ(Report(worker, 3, /*cut=*/true), 0);
  }
  Commit(4);
  waiting.join();
}

TEST_F(ScalingTest, ACutThatAWorkerDidntLearnOfIsAskedForAgain) {
  StartJob();
  EXPECT_EQ(Report("worker/a", 0), 0);
  std::thread waiting([this] {
    const auto taken = controller_->TakeCheckpoint(NeverCancelled());
    ASSERT_TRUE(taken.ok()) << taken.status();
    EXPECT_EQ(taken->checkpoint().step(), 5);
  });
  while (Report("worker/a", 0) == 0) absl::SleepFor(absl::Milliseconds(1));
  // This one has gone on without an answer, up to step 2, and now its reports come late.
  for (const uint64_t step : {0, 1, 2}) Report("worker/b", step);
  EXPECT_EQ(Report("worker/a", 2), 4);
  EXPECT_EQ(Report("worker/a", 3), 4);
  EXPECT_EQ(Report("worker/a", 4, /*cut=*/true), 0);
  Commit(5);
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

TEST_F(ScalingTest, TakesMembersInAtTheEndOfAStep) {
  StartJob();
  EXPECT_EQ(Scale(3, 0), "3 servers and 2 workers, once 1 of 3 servers have joined");
  EXPECT_FALSE(State().has_upcoming()) << "there is nobody yet to take in";
  ASSERT_TRUE(Join("server/c").ok());
  EXPECT_EQ(PhaseOf("server/a"), v1::PHASE_RUNNING);
  const v1::ClusterState newcomer = StateOf("server/c");
  EXPECT_EQ(newcomer.phase(), v1::PHASE_WAITING);
  EXPECT_EQ(newcomer.placement().shards_size(), 0);
  EXPECT_EQ(newcomer.upcoming().servers_size(), 2) << "where it can fetch them";
  const std::map<std::string, std::string> before = Places();
  HandOver({"server/c"});
  EXPECT_THAT(Servers(), ElementsAre("server/a", "server/b", "server/c"));
  std::map<std::string, int> moved;
  for (const auto& [shard, server] : Places()) {
    if (server != before.at(shard)) ++moved[server];
  }
  EXPECT_EQ(moved.size(), 1) << "only to the newcomer";
  EXPECT_GT(moved["server/c"], 0);
  for (const char* id : {"server/a", "server/b", "server/c"}) {
    ASSERT_TRUE(Beat(id, State().generation()).ok());
  }
  EXPECT_EQ(State().phase(), v1::PHASE_RUNNING);
}

TEST_F(ScalingTest, TheLastOfTooManyLeaveWhenTheirShardsAreTakenOver) {
  StartJob();
  EXPECT_EQ(Scale(1, 0), "1 server and 2 workers");
  HandOver({"server/a"});
  EXPECT_THAT(Servers(), ElementsAre("server/a"));
  const v1::ClusterState leaves = StateOf("server/b");
  EXPECT_EQ(leaves.phase(), v1::PHASE_WAITING) << "others fetch from it";
  EXPECT_EQ(leaves.handover().generation(), 1);
  ASSERT_TRUE(Beat("server/a", State().generation()).ok());
  EXPECT_EQ(State().phase(), v1::PHASE_RUNNING);
  EXPECT_EQ(PhaseOf("server/b"), v1::PHASE_FINISHED);
}

TEST_F(ScalingTest, DrainsWhomItIsTold) {
  StartJob();
  EXPECT_EQ(Scale(0, 0, {"server/a", "worker/a"}), "1 server and 1 worker");
  EXPECT_EQ(Scale(0, 0, {"server/b"}), "a job needs at least one server and one worker");
  HandOver({"server/b"});
  EXPECT_THAT(Servers(), ElementsAre("server/b"));
  ASSERT_TRUE(Beat("server/b", State().generation()).ok());
  EXPECT_EQ(PhaseOf("server/a"), v1::PHASE_FINISHED);
  EXPECT_EQ(PhaseOf("worker/a"), v1::PHASE_FINISHED);
}

TEST_F(ScalingTest, AServerThatGivesAwayIsNeededUntilItHas) {
  StartJob();
  Scale(1, 0);
  HandOver({"server/a"});
  LeaveCluster("server/b");
  EXPECT_EQ(State().generation(), 3) << "its shards are lost";
  EXPECT_THAT(State().recovery(), HasSubstr("server/b (host pid 123) left"));
  EXPECT_FALSE(State().has_handover());
  EXPECT_EQ(State().start_step(), 0);
}

TEST_F(ScalingTest, WorkersGoOnIfThereIsNobodyToChangeOverTo) {
  StartJob();
  Scale(3, 0);
  ASSERT_TRUE(Join("server/c").ok());
  Arrive("server/c");
  EXPECT_EQ(StopAfter("worker/a", 0), 0) << "the tests' way to say step 0";
  EXPECT_EQ(StopAfter("worker/b", 0), 0);
  LeaveCluster("server/c");
  for (const absl::Status& answer : Stop(1)) EXPECT_TRUE(answer.ok()) << answer;
  EXPECT_EQ(State().generation(), 1);
  // Asked once more, after the answer was lost.
  for (const absl::Status& answer : Stop(1)) EXPECT_TRUE(answer.ok()) << answer;
  ASSERT_TRUE(Join("server/c").ok());
  EXPECT_EQ(StopAfter("worker/a", 1), 0) << "the new process has fetched nothing";
  Arrive("server/c");
  EXPECT_EQ(StopAfter("worker/b", 1), 2);
}

TEST_F(ScalingTest, NobodyWaitsForAWorkerThatDoesNotKnow) {
  StartJob();
  Scale(3, 0);
  ASSERT_TRUE(Join("server/c").ok());
  Arrive("server/c");
  v1::AwaitHandoverRequest request;
  request.set_member("worker/a");
  request.set_step(1);
  request.set_generation(1);
  absl::Notification answered;
  std::thread waiting([&] {
    EXPECT_TRUE(controller_->AwaitHandover(request, NeverCancelled()).ok());
    answered.Notify();
  });
  while (!answered.HasBeenNotified()) {
    Advance(absl::Seconds(1));
    BeatAll();
  }
  waiting.join();
  EXPECT_EQ(State().generation(), 1);
}

TEST_F(ScalingTest, AHandoverIsNotAskedForWhileACutIsUnderWay) {
  StartJob();
  Scale(3, 0);
  ASSERT_TRUE(Join("server/c").ok());
  BeginCut(1);
  Arrive("server/c");
  for (const char* worker : {"worker/a", "worker/b"}) EXPECT_EQ(StopAfter(worker, 1), 0);
  CommitBegun(1);
  EXPECT_EQ(StopAfter("worker/a", 2), 2);
  EXPECT_EQ(StopAfter("worker/b", 2), 2);
}

TEST_F(ScalingTest, ACheckpointThatSomebodyWaitsForIsTakenBeforeTheHandover) {
  StartJob();
  std::thread waiting([this] {
    const auto taken = controller_->TakeCheckpoint(NeverCancelled());
    ASSERT_TRUE(taken.ok()) << taken.status();
    EXPECT_EQ(taken->checkpoint().step(), 4);
  });
  while (Report("worker/a", 0) == 0) absl::SleepFor(absl::Milliseconds(1));
  Scale(3, 0);
  ASSERT_TRUE(Join("server/c").ok());
  Arrive("server/c");
  EXPECT_EQ(StopAfter("worker/a", 2), 0);
  BeginCut(4);
  CommitBegun(4);
  waiting.join();
  EXPECT_EQ(StopAfter("worker/a", 4), 4);
}

TEST_F(ScalingTest, WorkersThatHaveStoppedWaitForACutOfThatStep) {
  StartJob();
  StopInACut();
  std::vector<absl::Status> answers;
  std::thread stopped([&] { answers = Stop(2); });
  // For longer than others are waited for.
  for (int i = 0; i < 8; ++i) {
    Advance(absl::Seconds(1));
    for (const char* id : {"server/a", "server/b", "worker/a", "worker/b"}) {
      ASSERT_TRUE(Beat(id).ok());
    }
    Arrive("server/c");
  }
  EXPECT_EQ(State().generation(), 1);
  for (const v1::ReportShardFileRequest& file : WriteShards(2)) {
    ASSERT_TRUE(controller_->ReportShardFile(file).ok());
  }
  stopped.join();
  for (const absl::Status& answer : answers)
    EXPECT_TRUE(absl::IsAborted(answer)) << answer;
  EXPECT_TRUE(std::filesystem::exists(dir_ + "/" + StepFolderName(2)));
  EXPECT_EQ(State().generation(), 2);
  EXPECT_EQ(State().handover().step(), 2);
  EXPECT_FALSE(controller_->GetClusterStatus().has_cut());
}

TEST_F(ScalingTest, WorkersThatHaveStoppedInACutGoOnIfThereIsNobodyToChangeOverTo) {
  StartJob();
  StopInACut();
  std::vector<absl::Status> answers;
  std::thread stopped([&] { answers = Stop(2); });
  absl::SleepFor(absl::Milliseconds(50));
  LeaveCluster("server/c");
  controller_->Tick();
  stopped.join();
  for (const absl::Status& answer : answers) EXPECT_TRUE(answer.ok()) << answer;
  EXPECT_EQ(State().generation(), 1);
  EXPECT_TRUE(controller_->GetClusterStatus().has_cut());
}

TEST_F(ScalingTest, GrowsByItselfIfItIsToldTo) {
  options_.grow = true;
  StartJob();
  v1::RegisterRequest other = Registration("server/c");
  other.set_numerics("another class");
  EXPECT_FALSE(Join(other).ok());
  EXPECT_FALSE(State().has_upcoming()) << "one that is refused changes nothing";
  ASSERT_TRUE(Join("server/c").ok());
  HandOver({"server/c"});
  EXPECT_THAT(Servers(), ElementsAre("server/a", "server/b", "server/c"));
  for (const char* id : {"server/a", "server/b", "server/c"}) {
    ASSERT_TRUE(Beat(id, State().generation()).ok());
  }
  const absl::Status more_than_replicas = Join("worker/c");
  EXPECT_EQ(more_than_replicas.ok(), options_.job.training().replicas() > 2)
      << more_than_replicas;
}

TEST_F(ScalingTest, AWishInBetweenMakesAnotherPlan) {
  StartJob();
  Scale(3, 0);
  ASSERT_TRUE(Join("server/c").ok());
  const uint64_t first = State().upcoming().placement().version();
  EXPECT_GT(first, State().placement().version());
  Scale(0, 1);
  EXPECT_GT(State().upcoming().placement().version(), first);
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
  HandOver({"server/a"});
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
