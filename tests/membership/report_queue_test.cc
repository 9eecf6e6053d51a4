#include "common/membership/report_queue.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

namespace moe {
namespace {

// A coordinator that may be away.
class ReportQueueTest : public ::testing::Test {
 protected:
  absl::StatusOr<ReportQueue::Answer> Take(const ReportQueue::Report& report) {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&there_));
    if (!refusal_.ok()) return refusal_;
    ReportQueue::Answer answer;
    if (const auto* step = std::get_if<v1::ReportStepRequest>(&report)) {
      taken_.push_back(absl::StrCat("step ", step->step()));
      answer.set_cut(true);
      answer.set_cut_step(step->step() + 2);
    } else if (const auto* evaluation =
                   std::get_if<v1::ReportEvaluationRequest>(&report)) {
      taken_.push_back(absl::StrCat("evaluation ", evaluation->step()));
    } else {
      taken_.push_back(std::get<v1::ReportShardFileRequest>(report).file().shard());
    }
    return answer;
  }
  void SetThere(bool there, const absl::Status& refusal = absl::OkStatus()) {
    absl::MutexLock lock(&mutex_);
    there_ = there;
    refusal_ = refusal;
  }
  std::vector<std::string> taken() {
    absl::MutexLock lock(&mutex_);
    return taken_;
  }
  static v1::ReportStepRequest Step(uint64_t step) {
    v1::ReportStepRequest report;
    report.set_step(step);
    return report;
  }
  static v1::ReportEvaluationRequest Evaluation(uint64_t step) {
    v1::ReportEvaluationRequest report;
    report.set_step(step);
    return report;
  }

  absl::Mutex mutex_;
  bool there_ = true;
  absl::Status refusal_;
  std::vector<std::string> taken_;
};

using Taken = std::vector<std::string>;

TEST_F(ReportQueueTest, AStepHasItsAnswer) {
  ReportQueue queue({.grace = absl::InfiniteDuration()},
                    [this](const auto& report) { return Take(report); });
  for (const uint64_t step : {0, 1}) {
    const auto answer = queue.Add(Step(step));
    ASSERT_TRUE(answer.ok()) << answer.status();
    ASSERT_TRUE(answer->has_value());
    EXPECT_EQ((*answer)->cut_step(), step + 2);
  }
}

TEST_F(ReportQueueTest, KeepsReportsInOrderWhileNobodyAnswers) {
  ReportQueue queue({.grace = absl::Milliseconds(1)},
                    [this](const auto& report) { return Take(report); });
  SetThere(false);
  for (const uint64_t step : {0, 1, 2}) {
    const auto answer = queue.Add(Step(step));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_FALSE(answer->has_value());
    ASSERT_TRUE(queue.Add(Evaluation(step + 1)).ok());
  }
  EXPECT_EQ(taken(), Taken());
  SetThere(true);
  ASSERT_TRUE(queue.Drain().ok());
  EXPECT_EQ(taken(), (Taken{"step 0", "evaluation 1", "step 1", "evaluation 2", "step 2",
                            "evaluation 3"}));
}

TEST_F(ReportQueueTest, BeyondItsBoundItWaits) {
  ReportQueue queue({.grace = absl::Milliseconds(1), .most_bytes = 1},
                    [this](const auto& report) { return Take(report); });
  SetThere(false);
  ASSERT_FALSE((*queue.Add(Step(1))).has_value());
  absl::Status second = absl::UnknownError("not yet");
  std::thread worker([&] { second = queue.Add(Evaluation(2)); });
  SetThere(true);
  worker.join();
  EXPECT_TRUE(second.ok());
  ASSERT_TRUE(queue.Drain().ok());
  EXPECT_EQ(taken(), (Taken{"step 1", "evaluation 2"}));
}

TEST_F(ReportQueueTest, ARefusalEndsAllUntilTheNextGeneration) {
  ReportQueue queue({.grace = absl::InfiniteDuration()},
                    [this](const auto& report) { return Take(report); });
  SetThere(true, absl::AbortedError("generation 1 is over"));
  EXPECT_EQ(queue.Add(Step(0)).status().message(), "generation 1 is over");
  EXPECT_EQ(queue.Add(Evaluation(1)).message(), "generation 1 is over");
  EXPECT_EQ(queue.Drain().message(), "generation 1 is over");
  SetThere(true);
  queue.Clear();
  EXPECT_TRUE(queue.Add(Step(0)).ok());
  EXPECT_EQ(taken(), Taken{"step 0"});
}

TEST_F(ReportQueueTest, WhatIsForgottenIsNotSent) {
  ReportQueue queue({.grace = absl::Milliseconds(1)},
                    [this](const auto& report) { return Take(report); });
  SetThere(false);
  for (const uint64_t step : {7, 8}) ASSERT_TRUE(queue.Add(Step(step)).ok());
  queue.Clear();
  ASSERT_TRUE(queue.Add(Evaluation(1)).ok());
  SetThere(true);
  ASSERT_TRUE(queue.Drain().ok());
  // The one that was on its way, if it was yet, can't be had back.
  Taken rest = taken();
  if (rest.size() > 1) {
    EXPECT_EQ(rest.front(), "step 7");
    rest.erase(rest.begin());
  }
  EXPECT_EQ(rest, Taken{"evaluation 1"});
}

TEST_F(ReportQueueTest, AnotherCoordinatorHearsTheLastStepAgain) {
  ReportQueue queue({.grace = absl::InfiniteDuration()},
                    [this](const auto& report) { return Take(report); });
  for (const uint64_t step : {0, 1}) ASSERT_TRUE(queue.Add(Step(step)).ok());
  v1::ReportShardFileRequest file;
  file.mutable_file()->set_shard("dense/0");
  queue.Repeat({file});
  ASSERT_TRUE(queue.Drain().ok());
  EXPECT_EQ(taken(), (Taken{"step 0", "step 1", "step 1", "dense/0"}));
}

}  // namespace
}  // namespace moe
