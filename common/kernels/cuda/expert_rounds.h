// Experts in rounds: as many at once as the memory for copies of their matrices and for gradients allows.
#pragma once

#include <deque>
#include <vector>

#include "common/kernels/cuda/context.h"
#include "common/kernels/cuda/expert_cache.h"

namespace moe::cuda {

// Of floats that are made from bf16, and of gradients.
inline constexpr int64_t kRoundScratchBytes = int64_t{1} << 30;

struct Shape {
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t size() const { return rows * cols; }
};

// Indices of the experts that have rows.
std::vector<size_t> WithRows(std::span<const ExpertRows> experts);

// Calls fn(part of `which`) for consecutive parts. cached(i), scratch(i): bytes that expert i takes of the
// cache and of scratch memory.
template <typename Cached, typename ScratchBytes, typename Fn>
void ForRounds(const Context& context, std::span<const size_t> which,
               const Cached& cached, const ScratchBytes& scratch, const Fn& fn) {
  size_t begin = 0;
  int64_t cached_sum = 0;
  int64_t scratch_sum = 0;
  for (size_t i = 0; i < which.size(); ++i) {
    const int64_t more_cached = cached(which[i]);
    const int64_t more_scratch = scratch(which[i]);
    if (i > begin && (cached_sum + more_cached > context.experts->round_bytes() ||
                      scratch_sum + more_scratch > kRoundScratchBytes)) {
      fn(which.subspan(begin, i - begin));
      begin = i;
      cached_sum = scratch_sum = 0;
    }
    cached_sum += more_cached;
    scratch_sum += more_scratch;
  }
  if (begin < which.size()) fn(which.subspan(begin));
}

// Bytes of an expert's first matrices of these shapes that lie in the host's memory, and so have to be
// copied; and of the floats that are made of bf16.
int64_t CachedBytes(const Context& context, const ExpertRows& expert,
                    std::span<const Shape> shapes);
int64_t FloatBytes(const ExpertRows& expert, std::span<const Shape> shapes);

// The matrices of a round's experts as floats on the device.
class RoundWeights {
 public:
  // Of each expert the first matrices, which have these shapes. Within a round of the cache.
  RoundWeights(const Context& context, std::span<const ExpertRows> experts,
               std::span<const size_t> which, std::span<const Shape> shapes);

  // Of the round's expert number `place`.
  ConstMatrix w(size_t place, size_t matrix) const {
    return ConstMatrix(pointers_[place * shapes_.size() + matrix], shapes_[matrix].rows,
                       shapes_[matrix].cols);
  }

 private:
  const std::vector<Shape> shapes_;
  std::deque<Scratch<float>> floats_;
  std::vector<const float*> pointers_;
};

}  // namespace moe::cuda
