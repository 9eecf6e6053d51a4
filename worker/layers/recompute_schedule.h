// What a recurrent layer computes again in its backward pass when it keeps few states
// (Gruslys et al. 2016, "Memory-Efficient Backpropagation Through Time").
#pragma once

#include <cstdint>
#include <vector>

namespace moe {

// For a recurrence of `steps` time steps. State t is the one before time step t; state 0 is always
// kept, in slot 0. The schedule takes the fewest time steps, by the paper's dynamic programme for
// hidden states,
//   C(t, 1) = t (t + 1) / 2,   C(t, m) = min over 1 <= y < t of y + C(t - y, m - 1) + C(y, m).
class RecomputeSchedule {
 public:
  static constexpr int32_t kNone = -1;

  // One time step.
  struct Run {
    int32_t step = 0;
    // Slot of the state before it; kNone: it is what the run before led to.
    int32_t from = kNone;
    // Slot for the state after it, or kNone.
    int32_t keep = kNone;
  };

  // slots: states kept at once, 1 <= slots <= steps.
  RecomputeSchedule(int32_t steps, int32_t slots);

  // The forward pass: all time steps in order.
  const std::vector<Run>& forward() const { return runs_.back(); }
  // What is run again before the backward of time step t, the last being t itself; nothing for the
  // last time step, which the forward pass has just run. Backwards come in descending order.
  const std::vector<Run>& again(int32_t t) const { return runs_[t]; }
  // Time steps run in all, the forward pass included: C(steps, slots).
  int64_t cost() const;

 private:
  // Plans the backwards of the time steps [begin, end); state `begin` is in slot `from`, and so many
  // slots beside it are free: those from `free` on.
  void Plan(int32_t begin, int32_t end, int32_t from, int32_t free);
  // Plans to run [begin, end) from the state in a slot.
  void Advance(int32_t begin, int32_t end, int32_t from, int32_t keep);

  const int32_t slots_;
  // [slots][steps + 1]: the best y of C(t, m), m - 1 and t being the indices.
  std::vector<std::vector<int32_t>> best_;
  // [steps + 1]: before the backward of t; then the forward pass.
  std::vector<std::vector<Run>> runs_;
  std::vector<Run> pending_;
};

}  // namespace moe
