#include "worker/layers/recompute_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <utility>
#include <vector>

namespace moe {
namespace {

// Runs time steps over states that are their own numbers.
class Recurrence {
 public:
  explicit Recurrence(int32_t slots) : kept_(slots, -1) { kept_[0] = 0; }

  void Run(const RecomputeSchedule::Run& run) {
    if (run.from != RecomputeSchedule::kNone) state_ = kept_.at(run.from);
    ASSERT_EQ(state_, run.step);
    ++state_;
    ++runs_;
    if (run.keep == RecomputeSchedule::kNone) return;
    ASSERT_NE(run.keep, 0)
        << "the state that the sequence starts with is needed to the end";
    kept_.at(run.keep) = state_;
  }
  int32_t state() const { return state_; }
  int64_t runs() const { return runs_; }

 private:
  std::vector<int32_t> kept_;
  int32_t state_ = 0;
  int64_t runs_ = 0;
};

// The least number of time steps that any strategy takes to go back over `steps` of them with so
// many states, the first included, tried out: what may be kept is the state after any number of them.
int64_t Least(int32_t steps, int32_t slots) {
  static std::map<std::pair<int32_t, int32_t>, int64_t> known;
  if (steps == 1) return 1;
  const auto found = known.find({steps, slots});
  if (found != known.end()) return found->second;
  // Without another state the last time step is reached from the first, again and again.
  int64_t least = steps + Least(steps - 1, slots);
  for (int32_t y = 1; y < steps && slots > 1; ++y) {
    least = std::min(least, y + Least(steps - y, slots - 1) + Least(y, slots));
  }
  return known[{steps, slots}] = least;
}

TEST(RecomputeScheduleTest, EveryBackwardFindsItsTimeStep) {
  for (int32_t steps = 1; steps <= 24; ++steps) {
    for (int32_t slots = 1; slots <= steps; ++slots) {
      SCOPED_TRACE(testing::Message() << steps << " steps, " << slots << " slots");
      const RecomputeSchedule schedule(steps, slots);
      Recurrence recurrence(slots);
      ASSERT_EQ(schedule.forward().size(), static_cast<size_t>(steps));
      for (const RecomputeSchedule::Run& run : schedule.forward()) recurrence.Run(run);
      EXPECT_TRUE(schedule.again(steps - 1).empty());
      for (int32_t t = steps - 2; t >= 0; --t) {
        ASSERT_FALSE(schedule.again(t).empty());
        EXPECT_NE(schedule.again(t).front().from, RecomputeSchedule::kNone);
        for (const RecomputeSchedule::Run& run : schedule.again(t)) recurrence.Run(run);
        EXPECT_EQ(recurrence.state(), t + 1);
      }
      EXPECT_EQ(schedule.cost(), recurrence.runs());
      EXPECT_EQ(schedule.cost(), Least(steps, slots));
    }
  }
}

TEST(RecomputeScheduleTest, Extremes) {
  for (int64_t steps : {1, 2, 7, 30}) {
    EXPECT_EQ(RecomputeSchedule(steps, 1).cost(), steps * (steps + 1) / 2);
    // All states: every time step but the last is run once more.
    EXPECT_EQ(RecomputeSchedule(steps, steps).cost(), 2 * steps - 1);
  }
  // Few states go a long way: less than three time steps for one.
  EXPECT_LT(RecomputeSchedule(100, 14).cost(), 300);
}

}  // namespace
}  // namespace moe
