#include "server/coordinator/run_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <thread>

#include "tests/coordinator/controller_fixture.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

using RunRecordTest = ControllerFixture;

TEST_F(RunRecordTest, JoinsSteps) {
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

TEST_F(RunRecordTest, DivergenceFailsTheJob) {
  StartJob();
  v1::ReportStepRequest report = StepReport("worker/a", 0);
  report.mutable_losses(0)->set_loss_sum(std::numeric_limits<double>::quiet_NaN());
  ASSERT_TRUE(controller_->ReportStep(report).ok());
  (void)controller_->ReportStep(StepReport("worker/b", 0));
  EXPECT_EQ(State().failure(), "training diverged: the loss of step 0 isn't finite");
}

TEST_F(RunRecordTest, JoinsEvaluations) {
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

TEST_F(RunRecordTest, OverdueEvaluationNamesWhoIsMissing) {
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

}  // namespace
}  // namespace moe
