#include "worker/layers/recompute_schedule.h"

#include <algorithm>
#include <utility>

#include "glog/logging.h"

namespace moe {

RecomputeSchedule::RecomputeSchedule(int32_t steps, int32_t slots)
    : slots_(slots), best_(slots, std::vector<int32_t>(steps + 1)), runs_(steps + 1) {
  CHECK_GE(slots, 1);
  CHECK_LE(slots, steps);
  std::vector<std::vector<int64_t>> cost(slots, std::vector<int64_t>(steps + 1));
  for (int64_t t = 1; t <= steps; ++t) cost[0][t] = t * (t + 1) / 2;
  for (int32_t m = 1; m < slots; ++m) {
    cost[m][1] = 1;
    for (int32_t t = 2; t <= steps; ++t) {
      int64_t least = -1;
      for (int32_t y = 1; y < t; ++y) {
        const int64_t all = y + cost[m - 1][t - y] + cost[m][y];
        if (least >= 0 && all >= least) continue;
        least = all;
        best_[m][t] = y;
      }
      cost[m][t] = least;
    }
  }
  Plan(0, steps, /*from=*/0, /*free=*/1);
  // What was to be run before the first backward is the forward pass.
  std::swap(runs_[steps - 1], runs_[steps]);
}

void RecomputeSchedule::Plan(int32_t begin, int32_t end, int32_t from, int32_t free) {
  const int32_t other_slots = slots_ - free;
  if (end - begin > 1 && other_slots > 0) {
    const int32_t middle = begin + best_[other_slots][end - begin];
    Advance(begin, middle, from, /*keep=*/free);
    Plan(middle, end, /*from=*/free, free + 1);
    Plan(begin, middle, from, free);
    return;
  }
  for (int32_t t = end - 1; t >= begin; --t) {
    Advance(begin, t + 1, from, kNone);
    runs_[t] = std::exchange(pending_, {});
  }
}

void RecomputeSchedule::Advance(int32_t begin, int32_t end, int32_t from, int32_t keep) {
  for (int32_t t = begin; t < end; ++t) {
    pending_.push_back({.step = t,
                        .from = t == begin ? from : kNone,
                        .keep = t == end - 1 ? keep : kNone});
  }
}

int64_t RecomputeSchedule::cost() const {
  int64_t cost = 0;
  for (const std::vector<Run>& runs : runs_) cost += static_cast<int64_t>(runs.size());
  return cost;
}

}  // namespace moe
