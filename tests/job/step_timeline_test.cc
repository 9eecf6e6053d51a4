#include "common/job/step_timeline.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

constexpr int kWorker = 0;
constexpr int kServer = 1;

CauseTimes Of(Cause cause, double seconds) {
  CauseTimes times;
  times[cause] = seconds;
  return times;
}

TEST(StepTimelineTest, TwoWavesKeepBothSidesBusy) {
  StepTimeline line(2);
  const CauseTimes worker = Of(Cause::kWorkerArithmetic, 2);
  const CauseTimes server = Of(Cause::kServerArithmetic, 3);
  const auto first = line.Add(kWorker, worker, {});
  const auto answer = line.Add(kServer, server, {first});
  const auto second = line.Add(kWorker, worker, {first});
  const auto last = line.Add(kServer, server, {second});
  line.Run();
  EXPECT_EQ(line.EndOf(answer), 5);
  EXPECT_EQ(line.EndOf(second), 4);
  // The server is still at the first wave when the second one comes.
  EXPECT_EQ(line.EndOf(last), 8);
  EXPECT_EQ(line.Path(last)[Cause::kWorkerArithmetic], 2);
  EXPECT_EQ(line.Path(last)[Cause::kServerArithmetic], 6);
  EXPECT_EQ(line.Busy(kWorker), 4);
  EXPECT_EQ(line.Busy(kServer), 6);
}

TEST(StepTimelineTest, WhatIsReadyFirstGoesFirst) {
  StepTimeline line(2);
  const auto slow = line.Add(kServer, Of(Cause::kServerArithmetic, 5), {});
  // Added first, ready last.
  const auto later = line.Add(kWorker, Of(Cause::kWorkerArithmetic, 1), {slow});
  const auto now = line.Add(kWorker, Of(Cause::kWorkerArithmetic, 4), {});
  line.Run();
  EXPECT_EQ(line.EndOf(now), 4);
  EXPECT_EQ(line.EndOf(later), 6);
}

TEST(StepTimelineTest, LatencyIsNobodys) {
  StepTimeline line(1);
  const CauseTimes latency = Of(Cause::kLatency, 1);
  const auto a = line.Add(StepTimeline::kNone, latency, {});
  const auto b = line.Add(StepTimeline::kNone, latency, {-1});
  const auto end = line.Add(0, Of(Cause::kNetwork, 1), {a, b});
  line.Run();
  EXPECT_EQ(line.EndOf(end), 2);
  EXPECT_EQ(line.Path(end).total(), 2);
}

TEST(StepTimelineTest, EveryCauseHasAName) {
  for (int i = 0; i < kCauses; ++i) {
    EXPECT_NE(CauseName(static_cast<Cause>(i)), "");
  }
}

}  // namespace
}  // namespace moe
