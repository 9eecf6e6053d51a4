// What the coordinator does when a server is lost of whose shards others have copies.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/job/placement.h"
#include "server/coordinator/adoption.h"
#include "tests/coordinator/controller_fixture.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class StandbyTest : public ControllerFixture {
 protected:
  void SetUp() override {
    ControllerFixture::SetUp();
    options_.copies = 2;
    // Heartbeats are answered at once.
    options_.heartbeat = absl::Milliseconds(1);
  }
  // With three servers.
  void StartThree() {
    options_.servers = 3;
    Create();
    JoinAll();
    ASSERT_TRUE(Join("server/c").ok());
    for (const char* id : {"server/a", "server/b", "server/c"}) {
      ASSERT_TRUE(Beat(id, State().generation()).ok());
    }
    ASSERT_EQ(State().phase(), v1::PHASE_RUNNING);
  }
  v1::Placement Present() { return State().placement(); }
  // Of servers, the largest.
  uint64_t MemoryNeed() {
    uint64_t need = 0;
    const v1::GetClusterStatusResponse status = controller_->GetClusterStatus();
    for (const v1::MemberStatus& member : status.members()) {
      if (member.kind() == v1::MEMBER_KIND_SERVER) {
        need = std::max(need, member.memory_need_bytes());
      }
    }
    return need;
  }
  // Of each shard so many.
  static void ExpectCopies(const v1::Placement& placement, size_t copies) {
    ASSERT_EQ(placement.shards_size(), 9);
    for (const v1::ShardPlacement& placed : placement.shards()) {
      EXPECT_EQ(HostsOf(placed).size(), copies) << placed.shard();
    }
  }
  // The worker goes on without the server.
  void Report(const std::string& worker, const std::string& server,
              uint64_t generation = 1) {
    v1::HeartbeatRequest request;
    request.set_member(worker);
    request.set_incarnation(incarnations_[worker]);
    request.set_generation(generation);
    v1::LostServer& lost = *request.add_lost();
    lost.set_server(server);
    lost.set_cause("the stream broke");
    EXPECT_TRUE(controller_->Heartbeat(request, NeverCancelled()).ok());
  }
  void ExpectGoesOn(const std::vector<std::string>& servers) {
    EXPECT_EQ(State().phase(), v1::PHASE_RUNNING);
    EXPECT_EQ(State().generation(), 1u);
    EXPECT_EQ(State().recovery(), "");
    EXPECT_EQ(Servers(), servers);
    EXPECT_THAT(Printed(), Not(HasSubstr("recovering")));
  }
  std::vector<std::string> MemberIds() {
    std::vector<std::string> ids;
    const v1::GetClusterStatusResponse status = controller_->GetClusterStatus();
    for (const v1::MemberStatus& member : status.members()) {
      ids.push_back(member.member());
    }
    return ids;
  }
  // As of both servers that have a copy.
  std::vector<v1::ReportShardFileRequest> WriteCopies(uint64_t step) {
    std::vector<v1::ReportShardFileRequest> reports = WriteShards(step);
    const v1::ClusterState state = State();
    for (int i = 0; i < state.placement().shards_size(); ++i) {
      if (state.placement().shards(i).standby().empty()) continue;
      v1::ReportShardFileRequest report = reports[i];
      report.set_member(state.placement().shards(i).standby());
      reports.push_back(std::move(report));
    }
    return reports;
  }
  uint64_t memory_ = 0;
  bool Committed(uint64_t step) {
    return std::filesystem::exists(absl::StrCat(dir_, "/", StepFolderName(step)));
  }
  void AwaitCommit(uint64_t step) {
    std::vector<std::thread> waiting;
    for (const char* worker : {"worker/a", "worker/b"}) {
      waiting.emplace_back([this, request = Await(worker, step)] {
        EXPECT_TRUE(controller_->AwaitCheckpoint(request, NeverCancelled()).ok());
      });
    }
    for (std::thread& thread : waiting) thread.join();
  }
};

TEST_F(StandbyTest, AServerThatLeavesIsGoneOnWithout) {
  StartJob();
  EXPECT_EQ(State().without_standby(), "");
  ExpectCopies(Present(), 2);
  LeaveCluster("server/b");
  ExpectGoesOn({"server/a"});
  ExpectCopies(Present(), 1);
  EXPECT_EQ(ShardsOf(Present(), "server/a").size(), 9u);
  EXPECT_EQ(
      State().without_standby(),
      "server/b (host pid 123) left before the job was finished; 9 of 9 shards have "
      "no second copy until another server joins");
  EXPECT_THAT(Printed(), HasSubstr("going on without server/b: "));
  for (const char* worker : {"worker/a", "worker/b"}) {
    EXPECT_TRUE(controller_->ReportStep(StepReport(worker, 0)).ok());
  }
}

TEST_F(StandbyTest, AServerThatIsSilentOrThatAWorkerLostIsGoneOnWithout) {
  StartThree();
  // Another generation's workers don't count, nor does what isn't there.
  Report("worker/a", "server/c", 7);
  Report("worker/a", "server/none");
  ExpectGoesOn({"server/a", "server/b", "server/c"});
  Report("worker/a", "server/c");
  ExpectGoesOn({"server/a", "server/b"});
  EXPECT_THAT(State().without_standby(),
              HasSubstr("server/c was lost by worker/a: the stream broke"));
  // Said again, also when it is there again: of the same generation it has no part.
  Report("worker/b", "server/c");
  EXPECT_TRUE(Join("server/c").ok());
  Report("worker/b", "server/c");
  ExpectGoesOn({"server/a", "server/b"});
  EXPECT_EQ(MemberIds().size(), 5u);
}

TEST_F(StandbyTest, TheLeaseOfAServer) {
  StartThree();
  for (int i = 0; i < 4; ++i) {
    Advance(options_.lease / 3);
    for (const char* id : {"server/a", "server/b", "worker/a", "worker/b"}) {
      ASSERT_TRUE(Beat(id).ok()) << id;
    }
  }
  ExpectGoesOn({"server/a", "server/b"});
  EXPECT_THAT(State().without_standby(),
              HasSubstr("server/c (host pid 123) was lost: no "));
  // When it wakes up it is a stranger, whatever it says.
  EXPECT_TRUE(absl::IsNotFound(Beat("server/c", 1).status()));
  v1::ReportShardFileRequest file = WriteShards(2).front();
  file.set_member("server/c");
  EXPECT_TRUE(absl::IsNotFound(controller_->ReportShardFile(file)));
  controller_->FailJob(Failure("server/c", "a disk is full"));
  ExpectGoesOn({"server/a", "server/b"});
}

TEST_F(StandbyTest, AServerThatLosesAPeerIsGoneOnWithout) {
  StartThree();
  controller_->FailJob(Failure("server/a", "the stream of worker/b broke", true));
  ExpectGoesOn({"server/b", "server/c"});
  // So was it the worker.
  controller_->FailJob(Failure("server/b", "the stream of worker/b broke", true));
  EXPECT_EQ(State().phase(), v1::PHASE_WAITING);
  EXPECT_THAT(Printed(), HasSubstr("recovering: server/b: the stream of worker/b broke"));
}

TEST_F(StandbyTest, WhatIsNoLossFailsTheJob) {
  StartThree();
  controller_->FailJob(Failure("server/a", "the disk is full"));
  EXPECT_EQ(State().phase(), v1::PHASE_FAILED);
}

TEST_F(StandbyTest, BothCopiesOrAWorkerLostIsARecovery) {
  StartThree();
  LeaveCluster("server/b");
  LeaveCluster("server/a");
  EXPECT_EQ(State().phase(), v1::PHASE_WAITING);
  EXPECT_EQ(State().generation(), 2u);
  EXPECT_EQ(State().without_standby(), "");
  controller_->Tick();
  // As many as at first.
  EXPECT_THAT(State().waiting_for(), HasSubstr("2 of 3 servers"));

  controller_.reset();
  incarnations_.clear();
  lines_.clear();
  StartThree();
  LeaveCluster("worker/b");
  EXPECT_THAT(Printed(), HasSubstr("recovering: worker/b"));
}

TEST_F(StandbyTest, ANewcomerGetsSecondCopies) {
  StartThree();
  LeaveCluster("server/b");
  ASSERT_TRUE(Join("server/d").ok());
  ExpectGoesOn({"server/a", "server/c"});
  const v1::Upcoming upcoming = State().upcoming();
  ExpectCopies(upcoming.placement(), 2);
  EXPECT_TRUE(ShardsOf(upcoming.present(), "server/b").empty());
  // And if it is lost before, nothing is.
  LeaveCluster("server/d");
  EXPECT_FALSE(State().has_upcoming());
  ExpectGoesOn({"server/a", "server/c"});
}

TEST_F(StandbyTest, WithFewerServersTheOthersShareSecondCopies) {
  StartThree();
  LeaveCluster("server/b");
  EXPECT_FALSE(State().has_upcoming());
  v1::ScaleRequest request;
  request.set_servers(2);
  ASSERT_TRUE(controller_->Scale(request).ok());
  ASSERT_TRUE(State().has_upcoming());
  const v1::Upcoming upcoming = State().upcoming();
  ExpectCopies(upcoming.placement(), 2);
  request.set_servers(1);
  EXPECT_THAT(std::string(controller_->Scale(request).status().message()),
              HasSubstr("at least 2 servers"));
}

TEST_F(StandbyTest, ACheckpointWaitsForBothCopiesButNotForThoseOfALostServer) {
  StartThree();
  BeginCut(2);
  const auto reports = WriteCopies(2);
  for (const v1::ReportShardFileRequest& report : reports) {
    if (report.member() != "server/c") {
      ASSERT_TRUE(controller_->ReportShardFile(report).ok());
    }
  }
  EXPECT_THAT(controller_->GetClusterStatus().cut().waiting_for(),
              HasSubstr("server/c to write "));
  EXPECT_THAT(controller_->GetClusterStatus().cut().waiting_for(),
              Not(HasSubstr("server/a")));
  EXPECT_FALSE(Committed(2));
  // What it left when it was killed.
  const std::string unfinished =
      absl::StrCat(dir_, "/", CutFolderName(2, 1), "/dense-0.safetensors.tmp-1-2-3");
  std::ofstream(unfinished) << "half";
  LeaveCluster("server/c");
  AwaitCommit(2);
  const std::string folder = absl::StrCat(dir_, "/", StepFolderName(2));
  const auto manifest = ReadManifest(folder);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->shards_size(), 9);
  EXPECT_TRUE(VerifyContents(folder, *manifest).ok());
  EXPECT_FALSE(std::filesystem::exists(folder + "/dense-0.safetensors.tmp-1-2-3"));
  ExpectGoesOn({"server/a", "server/b"});

  // The next one has the files of those that are left.
  BeginCut(4);
  for (const v1::ReportShardFileRequest& report : WriteCopies(4)) {
    ASSERT_TRUE(controller_->ReportShardFile(report).ok());
  }
  AwaitCommit(4);
}

TEST_F(StandbyTest, ALostServersFileCounts) {
  StartThree();
  BeginCut(2);
  const auto reports = WriteCopies(2);
  for (const v1::ReportShardFileRequest& report : reports) {
    if (report.member() == "server/c") {
      ASSERT_TRUE(controller_->ReportShardFile(report).ok());
    }
  }
  LeaveCluster("server/c");
  for (const v1::ReportShardFileRequest& report : reports) {
    EXPECT_FALSE(Committed(2));
    if (report.member() != "server/c") {
      ASSERT_TRUE(controller_->ReportShardFile(report).ok());
    }
  }
  AwaitCommit(2);
}

TEST_F(StandbyTest, CopiesThatDifferFailTheJob) {
  StartThree();
  BeginCut(2);
  auto reports = WriteCopies(2);
  reports.back().mutable_file()->set_sha256(Sha256Hex("other"));
  absl::Status status;
  for (const v1::ReportShardFileRequest& report : reports) {
    status.Update(controller_->ReportShardFile(report));
  }
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_EQ(State().phase(), v1::PHASE_FAILED);
  EXPECT_THAT(State().failure(),
              HasSubstr("the copies of replica/2 differ after 2 steps"));
}

TEST_F(StandbyTest, TheNextCoordinatorKnowsWhoIsLost) {
  StartThree();
  LeaveCluster("server/b");
  const std::string without = State().without_standby();
  std::string why_not;
  AskedRun asked = {.job = options_.job,
                    .servers = 3,
                    .workers = 2,
                    .copies = 2,
                    .checkpoint_dir = options_.checkpoint_dir};
  auto found = FindAdoption(store_, asked, &why_not);
  ASSERT_TRUE(found.ok() && found->has_value()) << found.status() << why_not;
  options_.interrupted = true;
  options_.adoption = **found;
  Create();
  ExpectGoesOn({"server/a", "server/c"});
  EXPECT_EQ(State().without_standby(), without);
  EXPECT_EQ(State().waiting_for(),
            "waiting for server/a, server/c, worker/a, worker/b to be heard again");
  // It has a place.
  EXPECT_TRUE(Join("server/b").ok());
  asked.copies = 1;
  ASSERT_TRUE(FindAdoption(store_, asked, &why_not).ok());
  EXPECT_THAT(why_not, HasSubstr("3 2 instead of 3 2, 2 copies"));
}

TEST_F(StandbyTest, TheNextCoordinatorGoesOnWithoutOneThatDoesNotComeBack) {
  StartThree();
  std::string why_not;
  auto found = FindAdoption(store_,
                            {.job = options_.job,
                             .servers = 3,
                             .workers = 2,
                             .copies = 2,
                             .checkpoint_dir = options_.checkpoint_dir},
                            &why_not);
  ASSERT_TRUE(found.ok() && found->has_value()) << found.status() << why_not;
  options_.interrupted = true;
  options_.adoption = **found;
  Create();
  for (const char* id : {"server/a", "server/c", "worker/a", "worker/b"}) {
    v1::HeartbeatRequest request;
    request.set_member(id);
    request.set_incarnation(incarnations_[id]);
    request.set_generation(1);
    request.set_seen_generation(1);
    request.set_placement_version(State().placement().version());
    if (std::string(id).starts_with("server/")) request.set_ready_generation(1);
    ASSERT_TRUE(controller_->Heartbeat(request, NeverCancelled()).ok()) << id;
  }
  EXPECT_EQ(State().waiting_for(), "waiting for server/b to be heard again");
  // A worker that goes on without it knows.
  Report("worker/a", "server/b");
  ExpectGoesOn({"server/a", "server/c"});
  EXPECT_THAT(Printed(), HasSubstr("generation 1 goes on: all are back"));
  EXPECT_EQ(State().waiting_for(), "");
}

TEST_F(StandbyTest, MemoryForOneCopyOnly) {
  options_.job.mutable_model()->mutable_layers(1)->mutable_moe()->set_hidden(0, 1 << 20);
  const auto join = [&](const std::string& id) {
    v1::RegisterRequest request = Registration(id);
    request.set_memory_bytes(id.starts_with("server/") ? memory_ : 0);
    return Join(request);
  };
  const auto start = [&](int copies) {
    options_.copies = copies;
    controller_.reset();
    incarnations_.clear();
    lines_.clear();
    Create();
    for (const char* id : {"server/a", "server/b", "worker/a", "worker/b"}) {
      ASSERT_TRUE(join(id).ok()) << id;
    }
  };
  memory_ = uint64_t{1} << 40;
  start(1);
  const uint64_t one = MemoryNeed();
  start(2);
  const uint64_t two = MemoryNeed();
  EXPECT_GT(two, one + one / 2);
  EXPECT_LT(two, 2 * one + one / 4);
  memory_ = one;
  start(1);
  EXPECT_EQ(State().phase(), v1::PHASE_LOADING);
  start(2);
  EXPECT_EQ(State().phase(), v1::PHASE_FAILED);
  EXPECT_THAT(State().failure(),
              HasSubstr("with 2 copies of each shard (--copies): the job "
                        "small needs "));
}

TEST_F(StandbyTest, ARecoveryGoesOnWithOneCopyWhereMemoryHoldsNoMore) {
  options_.servers = 3;
  options_.rejoin_timeout = absl::Seconds(1);
  options_.job.mutable_model()->mutable_layers(1)->mutable_moe()->set_hidden(0, 1 << 20);
  uint64_t need = 0;
  for (const uint64_t memory : {uint64_t{1} << 40, uint64_t{0}}) {
    controller_.reset();
    incarnations_.clear();
    lines_.clear();
    Create();
    for (const char* id : {"server/a", "server/b", "server/c", "worker/a", "worker/b"}) {
      v1::RegisterRequest request = Registration(id);
      if (request.kind() == v1::MEMBER_KIND_SERVER) {
        request.set_memory_bytes(memory > 0 ? memory : need);
      }
      ASSERT_TRUE(Join(request).ok()) << id;
    }
    ASSERT_EQ(State().phase(), v1::PHASE_LOADING) << State().failure();
    need = MemoryNeed();
  }
  // While it loads, any loss is one; two servers would need more for both copies of all.
  LeaveCluster("server/c");
  controller_->Tick();
  const uint64_t generation = State().generation();
  for (int i = 0; i < 2; ++i) {
    for (const char* id : {"server/a", "server/b", "worker/a", "worker/b"}) {
      ASSERT_TRUE(Beat(id, 0, "", generation).ok()) << id;
    }
    Advance(absl::Seconds(1));
  }
  EXPECT_EQ(State().phase(), v1::PHASE_LOADING) << State().failure();
  EXPECT_THAT(Printed(), HasSubstr("without second copies: with 2 copies of each shard"));
  EXPECT_THAT(State().without_standby(), HasSubstr("9 of 9 shards have no second copy"));
}

}  // namespace
}  // namespace moe
