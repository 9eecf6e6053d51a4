// A coordinator that goes on with the generation that ran under the one before.
#include "server/coordinator/adoption.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/coordinator/controller_fixture.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

class AdoptionTest : public ControllerFixture {
 protected:
  void SetUp() override {
    ControllerFixture::SetUp();
    options_.rejoin_timeout = absl::Seconds(20);
    // Heartbeats are answered at once.
    options_.heartbeat = absl::Milliseconds(1);
  }
  AskedRun Asked() {
    return {.job = options_.job,
            .servers = options_.servers,
            .workers = options_.workers,
            .checkpoint_dir = options_.checkpoint_dir};
  }
  // Empty if there is something to adopt.
  std::string WhyNot() {
    std::string why_not;
    const auto found = FindAdoption(store_, Asked(), &why_not);
    EXPECT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->has_value(), why_not.empty());
    return why_not;
  }
  // Another coordinator on the same store.
  void StartAgain() {
    std::string why_not;
    auto found = FindAdoption(store_, Asked(), &why_not);
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_TRUE(found->has_value()) << why_not;
    options_.interrupted = true;
    options_.adoption = **found;
    Create();
  }
  v1::HeartbeatRequest Heartbeat(const std::string& id, uint64_t step) {
    v1::HeartbeatRequest request;
    request.set_member(id);
    request.set_incarnation(incarnations_[id]);
    request.set_seen_phase(v1::PHASE_RUNNING);
    request.set_seen_generation(1);
    request.set_generation(1);
    request.set_step(step);
    request.set_placement_version(State().placement().version());
    if (id.starts_with("server/")) request.set_ready_generation(1);
    return request;
  }
  absl::StatusOr<v1::HeartbeatResponse> Send(const v1::HeartbeatRequest& request) {
    return controller_->Heartbeat(request, NeverCancelled());
  }
  void HearAll(uint64_t step) {
    for (const char* id : {"server/a", "server/b", "worker/a", "worker/b"}) {
      const auto response = Send(Heartbeat(id, step));
      ASSERT_TRUE(response.ok()) << response.status();
      EXPECT_EQ(response->coordinator(), 2);
      EXPECT_EQ(response->state().phase(), v1::PHASE_RUNNING);
    }
  }
  void TakeStep(uint64_t step) {
    for (const char* worker : {"worker/a", "worker/b"}) {
      ASSERT_TRUE(controller_->ReportStep(StepReport(worker, step)).ok());
    }
  }
  void Await(uint64_t step) {
    std::vector<std::thread> waiting;
    for (const char* worker : {"worker/a", "worker/b"}) {
      waiting.emplace_back([this, request = ControllerFixture::Await(worker, step)] {
        EXPECT_TRUE(controller_->AwaitCheckpoint(request, NeverCancelled()).ok());
      });
    }
    for (std::thread& thread : waiting) thread.join();
  }
  void Report(const std::vector<v1::ReportShardFileRequest>& files, size_t from,
              size_t to) {
    for (size_t i = from; i < to; ++i) {
      ASSERT_TRUE(controller_->ReportShardFile(files[i]).ok());
    }
  }
};

TEST_F(AdoptionTest, GoesOnWhenAllAreBack) {
  StartJob();
  TakeStep(0);
  StartAgain();
  v1::ClusterState state = State();
  EXPECT_EQ(state.phase(), v1::PHASE_RUNNING);
  EXPECT_EQ(state.generation(), 1);
  EXPECT_EQ(state.waiting_for(),
            "waiting for server/a, server/b, worker/a, worker/b to be heard again");
  // Silent for longer than a lease: they may still come.
  Advance(absl::Seconds(15));
  HearAll(1);
  EXPECT_EQ(State().waiting_for(), "");
  EXPECT_THAT(Printed(), HasSubstr("generation 1 goes on: all are back\n"));
  // One worker's report of the last step had been answered; it says it again.
  for (const uint64_t step : {0, 1, 2}) TakeStep(step);
  EXPECT_EQ(controller_->GetClusterStatus().progress().step(), 3);
  // From here on the lease counts.
  Advance(absl::Seconds(6));
  EXPECT_EQ(State().generation(), 2);
}

TEST_F(AdoptionTest, OneThatDoesNotComeBackEndsTheGeneration) {
  StartJob();
  StartAgain();
  for (int i = 0; i < 21; ++i) {
    Advance(absl::Seconds(1));
    for (const char* id : {"server/a", "worker/a", "worker/b"}) {
      (void)Send(Heartbeat(id, 0));
    }
  }
  EXPECT_EQ(State().generation(), 2);
  EXPECT_THAT(State().recovery(),
              HasSubstr("server/b (host pid 123) was lost: not heard for 20"));
}

TEST_F(AdoptionTest, OneThatHasLeftTheGenerationEndsIt) {
  StartJob();
  StartAgain();
  v1::HeartbeatRequest request = Heartbeat("worker/a", 0);
  request.set_generation(0);
  EXPECT_EQ(Send(request).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(State().recovery(),
            "worker/a (host pid 123) is not in generation 1 any more");
}

TEST_F(AdoptionTest, OneWithAnotherPlacementEndsTheGeneration) {
  StartJob();
  StartAgain();
  v1::HeartbeatRequest request = Heartbeat("server/a", 0);
  request.set_placement_version(7);
  EXPECT_EQ(Send(request).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(State().recovery(),
            "server/a (host pid 123) has version 7 of the placement instead of 1");
}

TEST_F(AdoptionTest, OneBehindTheCheckpointEndsTheGeneration) {
  StartJob();
  for (const uint64_t step : {0, 1}) TakeStep(step);
  const auto files = WriteShards(2);
  Report(files, 0, files.size());
  Await(2);
  StartAgain();
  ASSERT_TRUE(Send(Heartbeat("server/a", 2)).ok());
  EXPECT_EQ(Send(Heartbeat("server/b", 1)).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(State().recovery(),
            "server/b (host pid 123) knows of 1 steps, but 2 have been taken");
}

TEST_F(AdoptionTest, AnotherProcessUnderAMembersNameEndsTheGeneration) {
  StartJob();
  StartAgain();
  v1::RegisterRequest another = Registration("server/b");
  another.set_nonce(7);
  another.set_pid(124);
  ASSERT_TRUE(Join(another).ok());
  EXPECT_EQ(State().generation(), 2);
  EXPECT_EQ(State().recovery(),
            "server/b (host pid 123) was lost: another process has come under its name");
  EXPECT_EQ(incarnations_["server/b"], 2);
}

TEST_F(AdoptionTest, ANewGenerationIsAfterAllThatAnybodyNames) {
  StartJob();
  StartAgain();
  v1::HeartbeatRequest request = Heartbeat("worker/a", 0);
  request.set_generation(5);
  EXPECT_EQ(Send(request).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(State().generation(), 6) << "the store was older than the cluster";
}

TEST_F(AdoptionTest, KnowsTheEvaluationsThatWereComplete) {
  StartJob();
  TakeStep(0);
  std::thread first([&] {
    (void)controller_->ReportEvaluation(
        EvaluationReport("worker/a", 1, v1::SPLIT_VALIDATION), NeverCancelled());
  });
  ASSERT_TRUE(
      controller_
          ->ReportEvaluation(EvaluationReport("worker/b", 1, v1::SPLIT_VALIDATION),
                             NeverCancelled())
          .ok());
  first.join();
  StartAgain();
  HearAll(1);
  EXPECT_DOUBLE_EQ(controller_->GetClusterStatus().progress().validation_perplexity(),
                   std::exp(2.0));
  // The answer to this one was lost. The others won't report again.
  const auto again = controller_->ReportEvaluation(
      EvaluationReport("worker/b", 1, v1::SPLIT_VALIDATION), [] { return true; });
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_DOUBLE_EQ(again->perplexity(), std::exp(2.0));
  const auto files = WriteShards(1);
  Report(files, 0, files.size());
  Await(1);
  EXPECT_DOUBLE_EQ(controller_->GetClusterStatus().checkpoints(0).validation_perplexity(),
                   std::exp(2.0));
}

TEST_F(AdoptionTest, CommitsWhatWasCutBefore) {
  StartJob();
  TakeStep(0);
  const auto files = WriteShards(1);
  Report(files, 0, 2);
  StartAgain();
  HearAll(1);
  EXPECT_TRUE(std::filesystem::exists(dir_ + "/" + CutFolderName(1, 1)));
  // Members report again what isn't committed.
  Report(files, 0, files.size());
  Await(1);
  // Who didn't get the answer asks again, of the next coordinator, too.
  StartAgain();
  Await(1);
  EXPECT_TRUE(std::filesystem::exists(dir_ + "/" + StepFolderName(1)));
}

TEST_F(AdoptionTest, KnowsTheCutUnderWayByTheNextReport) {
  StartJob();
  BeginCut(1);
  TakeStep(1);
  StartAgain();
  HearAll(2);
  EXPECT_FALSE(controller_->GetClusterStatus().has_cut());
  v1::ReportStepRequest report = StepReport("worker/a", 2);
  report.set_last_cut(1);
  const auto response = controller_->ReportStep(report);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_TRUE(response->cut_under_way());
  EXPECT_EQ(controller_->GetClusterStatus().cut().step(), 1);
  const auto files = WriteShards(1);
  Report(files, 0, files.size());
  Await(1);
  EXPECT_FALSE(controller_->ReportStep(report)->cut_under_way());
}

TEST_F(AdoptionTest, KeepsTheEvaluationOfTheCutUnderWay) {
  validation_tokens_ = 100;
  StartJob();
  BeginCut(1);
  // More than are kept of others.
  for (uint64_t step = 1; step < 20; ++step) {
    std::thread other([&] {
      (void)controller_->ReportEvaluation(
          EvaluationReport("worker/a", step, v1::SPLIT_VALIDATION), NeverCancelled());
    });
    auto report = EvaluationReport("worker/b", step, v1::SPLIT_VALIDATION);
    for (v1::ReplicaLoss& loss : *report.mutable_losses()) {
      loss.set_loss_sum(step == 1 ? 30 : 20);
    }
    ASSERT_TRUE(controller_->ReportEvaluation(report, NeverCancelled()).ok());
    other.join();
  }
  StartAgain();
  HearAll(1);
  const auto files = WriteShards(1);
  Report(files, 0, files.size());
  Await(1);
  EXPECT_NEAR(controller_->GetClusterStatus().checkpoints(0).validation_perplexity(),
              std::exp(7.0 / 3), 1e-9);
}

TEST_F(AdoptionTest, FilesOfACheckpointThatIsSupersededAreNoCut) {
  StartJob();
  std::vector<v1::ReportShardFileRequest> superseded;
  for (const uint64_t steps : {1, 2}) {
    BeginCut(steps);
    const auto files = WriteShards(steps);
    if (steps == 1) superseded = files;
    Report(files, 0, files.size());
    Await(steps);
  }
  ASSERT_FALSE(std::filesystem::exists(dir_ + "/" + StepFolderName(1)));
  StartAgain();
  HearAll(2);
  Report(superseded, 0, superseded.size());
  EXPECT_FALSE(controller_->GetClusterStatus().has_cut());
  EXPECT_EQ(State().failure(), "");
}

TEST_F(AdoptionTest, FinishesWhatSomeHadFinished) {
  StartJob();
  TakeStep(0);
  ASSERT_TRUE(controller_->FinishWork(Finish("worker/a")).ok());
  StartAgain();
  HearAll(1);
  ASSERT_TRUE(controller_->FinishWork(Finish("worker/b")).ok());
  EXPECT_EQ(State().phase(), v1::PHASE_RUNNING);
  v1::HeartbeatRequest request = Heartbeat("worker/a", 1);
  request.set_finished_generation(1);
  const auto response = Send(request);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->state().phase(), v1::PHASE_FINISHED);
}

TEST_F(AdoptionTest, OnlyWhatIsAskedForGoesOn) {
  Create();
  JoinAll();
  EXPECT_EQ(WhyNot(), "generation 1 was LOADING");
  for (const char* id : {"server/a", "server/b"}) ASSERT_TRUE(Beat(id, 1).ok());
  EXPECT_EQ(WhyNot(), "");
  options_.servers = 3;
  EXPECT_EQ(WhyNot(),
            "other --servers, --workers or --copies are asked for: 3 2 instead of 2 2");
  options_.servers = 2;
  options_.job.mutable_training()->set_steps(5);
  EXPECT_EQ(WhyNot(), "the job has changed: modified: training.steps: 4 -> 5");
  options_.job.mutable_training()->set_steps(4);
  options_.checkpoint_dir = "/elsewhere";
  EXPECT_EQ(WhyNot(), "--checkpoint_dir was " + dir_ + " before");
  options_.checkpoint_dir = dir_;
  LeaveCluster("server/b");
  EXPECT_EQ(WhyNot(), "generation 2 was WAITING");
}

}  // namespace
}  // namespace moe
