#include "server/coordinator/job_controller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/coordinator/controller_fixture.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

using JobControllerTest = ControllerFixture;

TEST_F(JobControllerTest, RefusesImpossibleClusters) {
  const auto expect_refused = [&](const JobController::Options& options,
                                  const std::string& why) {
    const absl::Status status = JobController::Create(options, store_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  };
  JobController::Options options = options_;
  options.servers = 0;
  expect_refused(options, "--servers");
  options = options_;
  options.workers = 0;
  expect_refused(options, "--workers");
  options.workers = 4;
  expect_refused(options, "training.replicas is 3");
  options = options_;
  options.lease = options.heartbeat;
  expect_refused(options, "--lease_ms");
  options = options_;
  options.mode = v1::RUN_MODE_EVALUATE;
  expect_refused(options, "--checkpoint");
}

TEST_F(JobControllerTest, NamesWhomItWaitsFor) {
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

TEST_F(JobControllerTest, GivesOutPlacementAndReplicas) {
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

TEST_F(JobControllerTest, RefusesShardsThatNoMessageHolds) {
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

TEST_F(JobControllerTest, LosesASilentMember) {
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

TEST_F(JobControllerTest, DoesNotBlameMembersForItsOwnPause) {
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

TEST_F(JobControllerTest, MemberThatLeavesEarlyFailsTheJob) {
  StartJob();
  LeaveCluster("worker/b");
  EXPECT_EQ(State().failure(),
            "worker/b (host pid 123) left before the job was finished");
}

TEST_F(JobControllerTest, MemberThatIsLostWhileWaitingMayBeReplaced) {
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

TEST_F(JobControllerTest, FirstCauseStands) {
  StartJob();
  v1::FailJobRequest request;
  request.set_member("worker/stranger");
  request.set_cause("mischief");
  controller_->FailJob(request);
  EXPECT_EQ(State().phase(), v1::PHASE_RUNNING);
  request.set_member("worker/b");
  request.set_cause("the disk is full");
  controller_->FailJob(request);
  request.set_member("server/a");
  request.set_cause("worker/b is gone");
  controller_->FailJob(request);
  EXPECT_EQ(State().failure(), "worker/b: the disk is full");
  EXPECT_THAT(Printed(), HasSubstr("failed: worker/b: the disk is full\n"));
  const absl::Status status = controller_->ReportStep(StepReport("worker/a", 0));
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(status.message(), "worker/b: the disk is full");
}

TEST_F(JobControllerTest, ACauseNamesItsMemberOnce) {
  StartJob();
  v1::FailJobRequest request;
  request.set_member("worker/b");
  request.set_cause("worker/b: the disk is full");
  controller_->FailJob(request);
  EXPECT_EQ(State().failure(), "worker/b: the disk is full");
}

TEST_F(JobControllerTest, ReportsNeedARunningJob) {
  Create();
  ASSERT_TRUE(Join("worker/a").ok());
  EXPECT_EQ(controller_->ReportStep(StepReport("worker/a", 0)).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(controller_->ReportStep(StepReport("worker/b", 0)).code(),
            absl::StatusCode::kNotFound);
}

TEST_F(JobControllerTest, JoinsSteps) {
  StartJob();
  for (uint64_t step = 0; step < 4; ++step) {
    Advance(absl::Seconds(2));
    BeatAll();
    ASSERT_TRUE(controller_->ReportStep(StepReport("worker/b", step)).ok());
    EXPECT_EQ(controller_->GetClusterStatus().progress().step(), step);
    ASSERT_TRUE(controller_->ReportStep(StepReport("worker/b", step)).ok());
    EXPECT_EQ(controller_->GetClusterStatus().progress().step(), step);
    ASSERT_TRUE(controller_->ReportStep(StepReport("worker/a", step)).ok());
    ASSERT_TRUE(controller_->ReportStep(StepReport("worker/a", step)).ok());
  }
  const v1::Progress progress = controller_->GetClusterStatus().progress();
  EXPECT_EQ(progress.step(), 4);
  EXPECT_EQ(progress.total_steps(), 4);
  EXPECT_DOUBLE_EQ(progress.words_per_second(), 15);
  EXPECT_DOUBLE_EQ(progress.train_perplexity(), std::exp(2.0));
  EXPECT_EQ(progress.learning_rate(), 0.5);
  ASSERT_EQ(progress.balance_size(), 1);
  EXPECT_EQ(progress.balance(0).cv_importance(), 0.25);
  EXPECT_DOUBLE_EQ(progress.balance(0).max_over_mean_load(), 1.6);
  EXPECT_THAT(
      Printed(),
      HasSubstr(
          "step 1/4  epoch 0.10  words/s 15  train ppl 7.4  lr 0.50000  moe1: CV(imp) "
          "0.25 CV(load) 0.50 max/mean 1.60  ETA 6"));
  EXPECT_THAT(Printed(), HasSubstr("step 4/4  epoch 0.40"));
}

TEST_F(JobControllerTest, DivergenceFailsTheJob) {
  StartJob();
  v1::ReportStepRequest report = StepReport("worker/a", 0);
  report.mutable_losses(0)->set_loss_sum(std::numeric_limits<double>::quiet_NaN());
  ASSERT_TRUE(controller_->ReportStep(report).ok());
  (void)controller_->ReportStep(StepReport("worker/b", 0));
  EXPECT_EQ(State().failure(), "training diverged: the loss of step 0 isn't finite");
}

TEST_F(JobControllerTest, JoinsEvaluations) {
  StartJob();
  double first = 0;
  std::thread worker([&] {
    const auto response = controller_->ReportEvaluation(
        EvaluationReport("worker/b", 2, v1::SPLIT_VALIDATION), NeverCancelled());
    ASSERT_TRUE(response.ok()) << response.status();
    first = response->perplexity();
  });
  const auto request = EvaluationReport("worker/a", 2, v1::SPLIT_VALIDATION);
  const auto second = controller_->ReportEvaluation(request, NeverCancelled());
  worker.join();
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_DOUBLE_EQ(first, std::exp(2.0));
  EXPECT_EQ(second->perplexity(), first);
  EXPECT_EQ(controller_->ReportEvaluation(request, NeverCancelled())->perplexity(),
            first);
  EXPECT_DOUBLE_EQ(controller_->GetClusterStatus().progress().validation_perplexity(),
                   first);
  EXPECT_EQ(controller_->GetClusterStatus().progress().test_perplexity(), 0);
  EXPECT_THAT(Printed(),
              HasSubstr("validation perplexity 7.39 after step 2  moe1: CV(imp) 0.00"));
}

TEST_F(JobControllerTest, HeldReportEndsWithItsCallerAndWithTheJob) {
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

TEST_F(JobControllerTest, OverdueEvaluationNamesWhoIsMissing) {
  options_.report_timeout = absl::Seconds(20);
  StartJob();
  (void)controller_->ReportEvaluation(EvaluationReport("worker/a", 2, v1::SPLIT_TEST),
                                      [] { return true; });
  for (int i = 0; i < 19; ++i) {
    Advance(absl::Seconds(1));
    BeatAll();
  }
  ASSERT_EQ(State().phase(), v1::PHASE_RUNNING);
  Advance(absl::Seconds(1));
  EXPECT_EQ(State().failure(),
            "the test evaluation after step 2 has waited 20 s for worker/b");
}

TEST_F(JobControllerTest, AJobThatStandsStillFails) {
  options_.report_timeout = absl::Seconds(20);
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

class CheckpointTest : public ControllerFixture {
 protected:
  absl::StatusOr<v1::AwaitCheckpointResponse> Cut(uint64_t step,
                                                  double validation_loss = 0) {
    std::vector<std::thread> workers;
    absl::StatusOr<v1::AwaitCheckpointResponse> response;
    for (const std::string worker : {"worker/a", "worker/b"}) {
      workers.emplace_back([&, worker] {
        if (validation_loss > 0) {
          auto report = EvaluationReport(worker, step, v1::SPLIT_VALIDATION);
          for (auto& loss : *report.mutable_losses()) loss.set_loss_sum(validation_loss);
          EXPECT_TRUE(controller_->ReportEvaluation(report, NeverCancelled()).ok());
        }
        auto awaited =
            controller_->AwaitCheckpoint(Await(worker, step), NeverCancelled());
        if (worker == "worker/a") response = std::move(awaited);
      });
    }
    auto reports = WriteShards(step);
    std::reverse(reports.begin(), reports.end());
    for (const auto& report : reports) {
      EXPECT_TRUE(controller_->ReportShardFile(report).ok());
      (void)controller_->ReportShardFile(report);
    }
    for (std::thread& worker : workers) worker.join();
    return response;
  }

  std::vector<uint64_t> StepsOnDisk() {
    std::vector<uint64_t> steps;
    const auto checkpoints = ListCheckpoints(dir_);
    EXPECT_TRUE(checkpoints.ok()) << checkpoints.status();
    for (const Checkpoint& checkpoint : *checkpoints) {
      steps.push_back(checkpoint.manifest.step());
    }
    return steps;
  }
};

TEST_F(CheckpointTest, CommitsWhenAllIsThere) {
  StartJob();
  const auto response = Cut(2, 30);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->folder(), dir_ + "/step-00000002");
  const auto manifest = ReadManifest(response->folder());
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_TRUE(VerifyContents(response->folder(), *manifest).ok());
  EXPECT_EQ(manifest->job_name(), "small");
  EXPECT_EQ(manifest->data_sha256(), "da7a");
  EXPECT_EQ(manifest->step(), 2);
  EXPECT_EQ(manifest->generation(), 1);
  EXPECT_EQ(manifest->shards_size(), 9);
  EXPECT_EQ(manifest->digest(), response->digest());
  EXPECT_DOUBLE_EQ(manifest->validation_perplexity(), std::exp(3.0));
  std::vector<std::string> hashes;
  const ModelPlan plan = MakeModelPlan(State().job());
  for (const TensorSpec& tensor : plan.tensors) {
    hashes.push_back(Sha256Hex(absl::StrCat(tensor.name, 2)));
  }
  EXPECT_EQ(response->digest(), *ModelDigest(hashes));
  const auto status = controller_->GetClusterStatus();
  ASSERT_EQ(status.checkpoints_size(), 1);
  EXPECT_TRUE(status.checkpoints(0).best());
  EXPECT_TRUE(status.checkpoints(0).last());
  EXPECT_THAT(Printed(), HasSubstr("checkpoint " + response->folder()));
  EXPECT_EQ(
      controller_->AwaitCheckpoint(Await("worker/a", 2), NeverCancelled())->digest(),
      response->digest());
}

TEST_F(CheckpointTest, KeepsBestAndLast) {
  StartJob();
  ASSERT_TRUE(MakeDirs(dir_ + "/step-00000001").ok());
  ASSERT_TRUE(Cut(2, 30).ok());
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/step-00000001"));
  EXPECT_THAT(StepsOnDisk(), testing::ElementsAre(2));
  ASSERT_TRUE(Cut(4, 20).ok());
  EXPECT_THAT(StepsOnDisk(), testing::ElementsAre(4));
  ASSERT_TRUE(Cut(6, 25).ok());
  EXPECT_THAT(StepsOnDisk(), testing::ElementsAre(4, 6));
  ASSERT_TRUE(MakeDirs(dir_ + "/step-00000010").ok());
  ASSERT_TRUE(Cut(8).ok());
  EXPECT_THAT(StepsOnDisk(), testing::ElementsAre(4, 8));
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/step-00000006"));
  EXPECT_TRUE(std::filesystem::exists(dir_ + "/step-00000010"));
}

TEST_F(CheckpointTest, RefusesShardsOfOthers) {
  StartJob();
  auto report = WriteShards(2).front();
  report.set_member(report.member() == "server/a" ? "server/b" : "server/a");
  EXPECT_EQ(controller_->ReportShardFile(report).code(),
            absl::StatusCode::kFailedPrecondition);
  report.mutable_file()->set_shard("dense/99");
  EXPECT_FALSE(controller_->ReportShardFile(report).ok());
}

TEST_F(CheckpointTest, MissingFileFailsTheJob) {
  StartJob();
  const auto reports = WriteShards(2);
  std::filesystem::remove(dir_ + "/step-00000002/dense-0.safetensors");
  for (const auto& report : reports)
    ASSERT_TRUE(controller_->ReportShardFile(report).ok());
  std::thread worker([&] {
    EXPECT_EQ(controller_->AwaitCheckpoint(Await("worker/b", 2), NeverCancelled())
                  .status()
                  .code(),
              absl::StatusCode::kAborted);
  });
  EXPECT_EQ(controller_->AwaitCheckpoint(Await("worker/a", 2), NeverCancelled())
                .status()
                .code(),
            absl::StatusCode::kAborted);
  worker.join();
  EXPECT_THAT(State().failure(),
              AllOf(HasSubstr("the checkpoint of step 2 failed"),
                    HasSubstr("dense-0.safetensors"), HasSubstr("shared")));
  EXPECT_TRUE(StepsOnDisk().empty());
}

TEST_F(CheckpointTest, OverdueCheckpointNamesWhatIsMissing) {
  options_.report_timeout = absl::Seconds(2);
  StartJob();
  for (const auto& report : WriteShards(2)) {
    if (report.file().shard() != "dense/1") {
      ASSERT_TRUE(controller_->ReportShardFile(report).ok());
    }
  }
  (void)controller_->AwaitCheckpoint(Await("worker/a", 2), [] { return true; });
  Advance(absl::Seconds(3));
  EXPECT_THAT(State().failure(),
              AllOf(HasSubstr("the checkpoint of step 2 has waited 2.0 s for"),
                    HasSubstr("to write dense/1"), HasSubstr("worker/b"),
                    Not(HasSubstr("dense/0")), Not(HasSubstr("worker/a"))));
}

TEST_F(CheckpointTest, FinishesAndGoesOn) {
  StartJob();
  ASSERT_TRUE(Cut(4, 30).ok());
  ASSERT_TRUE(controller_->FinishWork(Finish("worker/a")).ok());
  EXPECT_EQ(State().phase(), v1::PHASE_RUNNING);
  ASSERT_TRUE(controller_->FinishWork(Finish("worker/b")).ok());
  ASSERT_TRUE(controller_->FinishWork(Finish("worker/b")).ok());
  EXPECT_EQ(State().phase(), v1::PHASE_FINISHED);
  LeaveCluster("worker/a");
  EXPECT_EQ(State().phase(), v1::PHASE_FINISHED);
  BeatAll();
  EXPECT_TRUE(controller_->WaitUntilOver().ok());
  const RunSummary summary = controller_->summary();
  EXPECT_EQ(summary.checkpoint, dir_ + "/step-00000004");
  EXPECT_DOUBLE_EQ(summary.validation_perplexity, std::exp(3.0));
  EXPECT_THAT(Printed(), AllOf(HasSubstr("finished small"), HasSubstr(summary.digest)));

  options_.restore = *FindRestorePoint(dir_);
  options_.job.mutable_training()->set_steps(100);
  StartJob();
  EXPECT_EQ(State().generation(), 2);
  EXPECT_EQ(State().start_step(), 4);
  EXPECT_EQ(State().restore_from(), dir_ + "/step-00000004");
  EXPECT_EQ(State().job().model().vocabulary(), 20);
  EXPECT_EQ(incarnations_["worker/a"], 2);

  Create();
  v1::RegisterRequest other = Registration("worker/a");
  other.mutable_data()->set_sha256("07e4");
  EXPECT_THAT(std::string(Join(other).message()),
              HasSubstr("the checkpoint was trained on (da7a)"));
}

TEST_F(CheckpointTest, RefusesACheckpointOfAnotherJob) {
  StartJob();
  ASSERT_TRUE(Cut(4).ok());
  options_.restore = *FindRestorePoint(dir_);
  const auto refusal = [&](const v1::Job& job) {
    JobController::Options options = options_;
    options.job = job;
    return std::string(JobController::Create(options, store_).status().message());
  };
  v1::Job job = options_.job;
  job.set_name("renamed");
  job.mutable_training()->set_steps(77);
  job.mutable_training()->set_evaluate_every(3);
  job.mutable_checkpointing()->set_every_steps(5);
  EXPECT_EQ(refusal(job), "");
  job = options_.job;
  job.mutable_training()->set_lanes(4);
  EXPECT_THAT(refusal(job), AllOf(HasSubstr("training.lanes: 2 -> 4"), HasSubstr(dir_)));
  job = options_.job;
  job.set_seed(9);
  EXPECT_THAT(refusal(job), HasSubstr("seed"));
  job = options_.job;
  job.mutable_model()->mutable_layers(1)->mutable_moe()->set_k(1);
  EXPECT_THAT(refusal(job), HasSubstr("model.layers[1].moe.k: 2 -> 1"));
  job = options_.job;
  job.mutable_model()->set_vocabulary(30);
  EXPECT_THAT(refusal(job), HasSubstr("model.vocabulary: 20 -> 30"));
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

TEST_F(JobControllerTest, StoreRemembers) {
  StartJob();
  EXPECT_EQ(store_.Get("job/name")->value().value, "small");
  EXPECT_EQ(store_.Get("job/phase")->value().value, "PHASE_RUNNING");
  EXPECT_EQ(store_.Get("job/generation")->value().value, "1");
  EXPECT_EQ(store_.Get("members/server/a")->value().value, "1");
  EXPECT_THAT(store_.Get("job/placement")->value().value, HasSubstr("layer1/group3"));
  Create();
  EXPECT_EQ(State().generation(), 2);
  EXPECT_EQ(store_.Get("job/phase")->value().value, "PHASE_WAITING");
}

}  // namespace
}  // namespace moe
