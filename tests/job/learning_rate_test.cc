#include "common/job/learning_rate.h"

#include "gtest/gtest.h"

namespace moe {
namespace {

TEST(LearningRateTest, ConstantStays) {
  v1::Schedule schedule;
  schedule.set_base_rate(0.25f);
  EXPECT_EQ(LearningRate(schedule, 0, 10), 0.25);
  schedule.mutable_constant();
  EXPECT_EQ(LearningRate(schedule, 0, 10), 0.25);
  EXPECT_EQ(LearningRate(schedule, 123456789, 10), 0.25);
}

TEST(LearningRateTest, InverseSqrtWarmsUpThenDecays) {
  v1::Schedule schedule;
  schedule.set_base_rate(0.5f);
  schedule.mutable_inverse_sqrt()->set_warmup_steps(100);
  EXPECT_DOUBLE_EQ(LearningRate(schedule, 0, 1), 0.5 / 100);
  EXPECT_DOUBLE_EQ(LearningRate(schedule, 49, 1), 0.25);
  EXPECT_DOUBLE_EQ(LearningRate(schedule, 98, 1), 0.495);
  EXPECT_DOUBLE_EQ(LearningRate(schedule, 99, 1), 0.5);
  EXPECT_LT(LearningRate(schedule, 100, 1), 0.5);
  EXPECT_DOUBLE_EQ(LearningRate(schedule, 399, 1), 0.25);
  EXPECT_DOUBLE_EQ(LearningRate(schedule, 999999, 1), 0.005);
}

TEST(LearningRateTest, InverseSqrtWithoutWarmUp) {
  v1::Schedule schedule;
  schedule.set_base_rate(2);
  schedule.mutable_inverse_sqrt()->set_warmup_steps(1);
  EXPECT_DOUBLE_EQ(LearningRate(schedule, 0, 1), 2);
  EXPECT_DOUBLE_EQ(LearningRate(schedule, 3, 1), 1);
}

// Zaremba et al.: 4 passes at the full rate, then half of it after each.
TEST(LearningRateTest, StepDecayHalvesEachPass) {
  v1::Schedule schedule;
  schedule.set_base_rate(20);
  schedule.mutable_step_decay()->set_constant_epochs(4);
  schedule.mutable_step_decay()->set_factor(0.5f);
  const int64_t steps_per_epoch = 7;
  EXPECT_EQ(LearningRate(schedule, 0, steps_per_epoch), 20);
  EXPECT_EQ(LearningRate(schedule, 4 * 7 - 1, steps_per_epoch), 20);
  EXPECT_EQ(LearningRate(schedule, 4 * 7, steps_per_epoch), 10);
  EXPECT_EQ(LearningRate(schedule, 5 * 7 - 1, steps_per_epoch), 10);
  EXPECT_EQ(LearningRate(schedule, 5 * 7, steps_per_epoch), 5);
  EXPECT_EQ(LearningRate(schedule, 12 * 7, steps_per_epoch), 20.0 / 512);
}

TEST(LearningRateTest, StepDecayFromTheStart) {
  v1::Schedule schedule;
  schedule.set_base_rate(8);
  schedule.mutable_step_decay()->set_factor(0.25f);
  EXPECT_EQ(LearningRate(schedule, 0, 1), 2);
  EXPECT_EQ(LearningRate(schedule, 1, 1), 0.5);
}

}  // namespace
}  // namespace moe
