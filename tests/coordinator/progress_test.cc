#include "server/coordinator/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "server/coordinator/line_printer.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class ProgressTest : public ::testing::Test {
 protected:
  void Step(uint64_t step, uint64_t total, absl::Duration took) {
    now_ += took;
    CompletedStep completed;
    completed.step = step;
    completed.total_steps = total;
    completed.tokens = 1000;
    reporter_.Step(completed, now_);
  }

  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  std::vector<std::string> lines_;
  ProgressReporter reporter_{[this](const std::string& line) { lines_.push_back(line); }};
};

TEST_F(ProgressTest, PrintsFirstAndLastAndOneASecond) {
  reporter_.Begin(0, 10000, now_);
  for (uint64_t step = 1; step <= 23; ++step) Step(step, 23, absl::Milliseconds(100));
  ASSERT_EQ(lines_.size(), 4);
  EXPECT_THAT(lines_[0],
              HasSubstr("step 1/23  epoch 0.10  words/s 10,000  train ppl 1.0"));
  EXPECT_THAT(lines_[0], HasSubstr("ETA 2.2 s"));
  EXPECT_THAT(lines_[1], HasSubstr("step 11/23"));
  EXPECT_THAT(lines_[2], HasSubstr("step 21/23"));
  EXPECT_THAT(lines_[3], AllOf(HasSubstr("step 23/23"), Not(HasSubstr("ETA"))));
}

TEST_F(ProgressTest, EvaluationsDoNotCount) {
  reporter_.Begin(0, 10000, now_);
  Step(1, 9, absl::Seconds(1));
  now_ += absl::Seconds(5);
  reporter_.Evaluation(1, v1::SPLIT_VALIDATION, 70, {}, now_);
  // Training went on meanwhile.
  reporter_.Checkpoint({}, absl::Seconds(6));
  EXPECT_THAT(lines_.back(), HasSubstr("(6.0 s)"));
  Step(2, 9, absl::Seconds(1));
  EXPECT_DOUBLE_EQ(reporter_.progress().words_per_second(), 1000);
  EXPECT_DOUBLE_EQ(reporter_.mean_words_per_second(), 1000);
  EXPECT_DOUBLE_EQ(reporter_.progress().seconds_left(), 7);
  EXPECT_EQ(reporter_.progress().validation_perplexity(), 70);
}

TEST_F(ProgressTest, TokensWithoutExpertsShow) {
  reporter_.Begin(0, 10000, now_);
  v1::BalanceStatus balance;
  balance.set_layer(1);
  balance.set_max_over_mean_load(1.25);
  reporter_.Evaluation(1, v1::SPLIT_TEST, 70, {balance}, now_);
  EXPECT_THAT(lines_.back(), HasSubstr("max/mean 1.25  ("));
  balance.set_unrouted_share(0.125);
  reporter_.Evaluation(1, v1::SPLIT_TEST, 70, {balance}, now_);
  EXPECT_THAT(lines_.back(), HasSubstr("max/mean 1.25 unrouted 12.5 %  ("));
}

TEST_F(ProgressTest, RateIsOfTheLastSeconds) {
  reporter_.Begin(0, 10000, now_);
  for (uint64_t step = 1; step <= 20; ++step) Step(step, 99, absl::Seconds(10));
  for (uint64_t step = 21; step <= 70; ++step) Step(step, 99, absl::Seconds(1));
  EXPECT_DOUBLE_EQ(reporter_.progress().words_per_second(), 1000);
  EXPECT_DOUBLE_EQ(reporter_.mean_words_per_second(), 70000.0 / 250);
}

TEST_F(ProgressTest, ResumedRunCountsItsEpochsOn) {
  reporter_.Begin(15, 10000, now_);
  Step(16, 20, absl::Seconds(1));
  EXPECT_THAT(lines_.back(), HasSubstr("step 16/20  epoch 1.60  words/s 1,000"));
}

TEST_F(ProgressTest, RepeatsWhatItWaitsForSeldom) {
  for (int i = 0; i < 150; ++i) {
    reporter_.Waiting("waiting for 1 of 1 server", now_);
    now_ += absl::Milliseconds(100);
  }
  reporter_.Waiting("waiting for 1 of 1 worker", now_);
  EXPECT_THAT(lines_,
              ElementsAre("waiting for 1 of 1 server", "waiting for 1 of 1 server",
                          "waiting for 1 of 1 worker"));
}

TEST(LinePrinterTest, WritesAllLinesInOrder) {
  std::ostringstream out;
  {
    LinePrinter printer(&out);
    printer.Print("one");
    printer.Print("two");
  }
  EXPECT_EQ(out.str(), "one\ntwo\n");
  LinePrinter(nullptr).Print("nowhere");
}

}  // namespace
}  // namespace moe
