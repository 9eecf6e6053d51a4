// A process that says it is a member, and isn't: nothing comes of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/coordinator/controller_fixture.h"

namespace moe {
namespace {

class StrangerTest : public ControllerFixture {
 protected:
  // A job that runs, whose members have nonces.
  void SetUp() override {
    ControllerFixture::SetUp();
    Create();
    uint64_t nonce = 100;
    for (const char* id : {"server/a", "server/b", "worker/a", "worker/b"}) {
      v1::RegisterRequest request = Registration(id);
      request.set_nonce(++nonce);
      ASSERT_TRUE(Join(request).ok()) << id;
    }
    for (const char* id : {"server/a", "server/b"}) ASSERT_TRUE(Beat(id, 1).ok());
    ASSERT_EQ(State().phase(), v1::PHASE_RUNNING);
  }
  // From here on all calls are a stranger's.
  void Forget() { nonces_.clear(); }
  void ExpectUnknown(const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  }
};

TEST_F(StrangerTest, EveryCallNeedsTheNonce) {
  Forget();
  ExpectUnknown(Beat("worker/a").status());
  ExpectUnknown(controller_->ReportStep(StepReport("worker/a", 0)).status());
  ExpectUnknown(
      controller_
          ->ReportEvaluation(EvaluationReport("worker/a", 0, v1::SPLIT_VALIDATION),
                             NeverCancelled())
          .status());
  ExpectUnknown(
      controller_->AwaitCheckpoint(Await("worker/a", 1), NeverCancelled()).status());
  ExpectUnknown(controller_->ReportShardFile(WriteShards(1)[0]));
  for (const char* id : {"worker/a", "worker/b"}) {
    ExpectUnknown(controller_->FinishWork(Finish(id)));
  }
  controller_->FailJob(Failure("worker/a", "mischief"));
  controller_->FailJob(Failure("server/a", "mischief", /*peer_lost=*/true));
  v1::LeaveRequest leave;
  leave.set_member("worker/a");
  leave.set_incarnation(incarnations_["worker/a"]);
  controller_->Leave(leave);
  const v1::ClusterState state = State();
  EXPECT_EQ(state.phase(), v1::PHASE_RUNNING);
  EXPECT_EQ(state.generation(), 1);
  EXPECT_EQ(controller_->GetClusterStatus().members_size(), 4);
}

TEST_F(StrangerTest, AHeartbeatDoesNotKeepAMemberAlive) {
  const std::map<std::string, uint64_t> nonces = nonces_;
  for (int i = 0; i < 12; ++i) {
    Advance(absl::Seconds(0.5));
    nonces_ = nonces;
    nonces_["worker/a"] = 7;
    for (const auto& [id, nonce] : nonces) (void)Beat(id, 1);
  }
  EXPECT_THAT(State().recovery(),
              ::testing::HasSubstr("worker/a (host pid 123) was lost"));
}

TEST_F(StrangerTest, AHeartbeatDoesNotUseUpTheGenerations) {
  Forget();
  for (const uint64_t generation : {~uint64_t{0}, ~uint64_t{0} - 1}) {
    v1::HeartbeatRequest request;
    request.set_member("worker/a");
    request.set_generation(generation);
    ExpectUnknown(controller_->Heartbeat(request, NeverCancelled()).status());
  }
  for (int i = 0; i < 12; ++i) Advance(absl::Seconds(0.5));
  EXPECT_THAT(State().recovery(), ::testing::HasSubstr("was lost"));
  EXPECT_EQ(State().generation(), 2);
}

// With it servers know their workers.
TEST_F(StrangerTest, MembersAloneLearnTheNonces) {
  const absl::StatusOr<v1::ClusterState> told = Beat("server/a", 1);
  ASSERT_TRUE(told.ok()) << told.status();
  ASSERT_GT(told->replicas_size(), 0);
  for (const v1::ReplicaAssignment& replica : told->replicas()) {
    EXPECT_EQ(replica.nonce(), nonces_[replica.worker()]);
  }
  const v1::ClusterState shown = State();
  for (const v1::ReplicaAssignment& replica : shown.replicas()) {
    EXPECT_EQ(replica.nonce(), 0);
  }
}

}  // namespace
}  // namespace moe
