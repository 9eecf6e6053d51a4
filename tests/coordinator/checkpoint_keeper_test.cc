#include "server/coordinator/checkpoint_keeper.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "tests/coordinator/controller_fixture.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class CheckpointTest : public ControllerFixture {
 protected:
  absl::StatusOr<v1::AwaitCheckpointResponse> Cut(uint64_t step,
                                                  double validation_loss = 0) {
    BeginCut(step);
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
  validation_tokens_ = 100;
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
  validation_tokens_ = 100;
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
  ASSERT_TRUE(Cut(8, 28).ok());
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
  BeginCut(2);
  const auto reports = WriteShards(2);
  std::filesystem::remove(dir_ + "/step-00000002.generation-1/dense-0.safetensors");
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

TEST_F(CheckpointTest, WorkersGoOnWhileServersWrite) {
  validation_tokens_ = 100;
  StartJob();
  EXPECT_TRUE(ReportCut("worker/a", 1).cut_under_way());
  ReportCut("worker/b", 1);
  const auto reports = WriteShards(1);
  ASSERT_TRUE(controller_->ReportShardFile(reports[0]).ok());
  for (const char* worker : {"worker/a", "worker/b"}) {
    const auto step = controller_->ReportStep(StepReport(worker, 1));
    ASSERT_TRUE(step.ok()) << step.status();
    EXPECT_TRUE(step->cut_under_way());
  }
  EXPECT_EQ(controller_->GetClusterStatus().progress().step(), 2);
  v1::CutStatus cut = controller_->GetClusterStatus().cut();
  EXPECT_EQ(cut.step(), 1);
  EXPECT_THAT(cut.waiting_for(), HasSubstr("to write dense/1"));
  EXPECT_THAT(cut.waiting_for(), Not(HasSubstr("dense/0")));
  for (const auto& report : reports)
    ASSERT_TRUE(controller_->ReportShardFile(report).ok());
  EXPECT_EQ(controller_->GetClusterStatus().cut().waiting_for(),
            "the evaluation of the validation text");
  EXPECT_TRUE(StepsOnDisk().empty());

  std::thread other([&] {
    EXPECT_TRUE(
        controller_
            ->ReportEvaluation(EvaluationReport("worker/b", 1, v1::SPLIT_VALIDATION),
                               NeverCancelled())
            .ok());
  });
  EXPECT_TRUE(
      controller_
          ->ReportEvaluation(EvaluationReport("worker/a", 1, v1::SPLIT_VALIDATION),
                             NeverCancelled())
          .ok());
  other.join();
  const auto committed =
      controller_->AwaitCheckpoint(Await("worker/a", 1), NeverCancelled());
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_DOUBLE_EQ(ReadManifest(committed->folder())->validation_perplexity(),
                   std::exp(2.0));
  EXPECT_FALSE(controller_->GetClusterStatus().has_cut());
  const auto after = controller_->ReportStep(StepReport("worker/a", 2));
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_FALSE(after->cut_under_way());
}

// There is none of a cut that not all workers wanted.
TEST_F(CheckpointTest, AFileIsProofOfACut) {
  StartJob();
  const auto reports = WriteShards(2);
  ASSERT_TRUE(controller_->ReportShardFile(reports[0]).ok());
  const v1::CutStatus cut = controller_->GetClusterStatus().cut();
  EXPECT_EQ(cut.step(), 2);
  EXPECT_THAT(cut.waiting_for(), HasSubstr("to write dense/1"));
  for (const auto& report : reports)
    ASSERT_TRUE(controller_->ReportShardFile(report).ok());
  EXPECT_TRUE(controller_->AwaitCheckpoint(Await("worker/a", 2), NeverCancelled()).ok());
  // What comes again changes nothing.
  EXPECT_FALSE(ReportCut("worker/a", 2).cut_under_way());
  EXPECT_THAT(StepsOnDisk(), testing::ElementsAre(2));
}

TEST_F(CheckpointTest, OverdueCheckpointNamesWhatIsMissing) {
  options_.report_timeout = absl::Seconds(2);
  StartJob();
  BeginCut(2);
  const auto pass = [&](int seconds) {
    for (int i = 0; i < 4 * seconds; ++i) {
      Advance(absl::Milliseconds(250));
      BeatAll();
    }
  };
  pass(1);
  for (const auto& report : WriteShards(2)) {
    if (report.file().shard() != "dense/1") {
      ASSERT_TRUE(controller_->ReportShardFile(report).ok());
    }
  }
  pass(1);
  // Training goes on, which is no sign of the checkpoint.
  ASSERT_TRUE(controller_->ReportStep(StepReport("worker/a", 2)).ok());
  EXPECT_EQ(State().phase(), v1::PHASE_RUNNING);
  Advance(absl::Seconds(2));
  EXPECT_THAT(State().failure(),
              AllOf(HasSubstr("the checkpoint of step 2 has waited 2.0 s for server/"),
                    HasSubstr("to write dense/1"), Not(HasSubstr("worker/")),
                    Not(HasSubstr("dense/0"))));
}

TEST_F(CheckpointTest, FinishesAndGoesOn) {
  validation_tokens_ = 100;
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
              HasSubstr("the job was trained on (da7a)"));
}

TEST_F(CheckpointTest, RefusesACheckpointOfAnotherJob) {
  StartJob();
  ASSERT_TRUE(Cut(4).ok());
  options_.restore = *FindRestorePoint(dir_);
  const auto refusal = [&](const v1::Job& job) {
    RunOptions options = options_;
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

// From before a field existed.
TEST_F(CheckpointTest, AnUnsetFieldOfACheckpointsJobHasItsDefault) {
  StartJob();
  ASSERT_TRUE(Cut(4).ok());
  const std::string folder = dir_ + "/step-00000004";
  v1::Manifest manifest = *ReadManifest(folder);
  const std::string field = "parameters: PARAMETERS_FLOAT32";
  const size_t at = manifest.job().find(field);
  ASSERT_NE(at, std::string::npos) << manifest.job();
  manifest.mutable_job()->erase(at, field.size());
  ASSERT_TRUE(WriteManifest(folder, manifest).ok());
  const auto point = FindRestorePoint(dir_);
  ASSERT_TRUE(point.ok()) << point.status();
  EXPECT_EQ(point->job.model().layers(1).moe().parameters(), v1::PARAMETERS_FLOAT32);
  options_.restore = *point;
  const auto controller = JobController::Create(options_, store_);
  EXPECT_TRUE(controller.ok()) << controller.status();
}

}  // namespace
}  // namespace moe
