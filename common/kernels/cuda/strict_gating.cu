#include <limits>

#include "common/kernels/cuda/block.h"
#include "common/kernels/cuda/device_math.h"
#include "common/kernels/cuda/elements.h"
#include "common/kernels/cuda/strict_gating.h"
#include "common/random/element.h"

namespace moe::cuda {
namespace {

constexpr unsigned kThreads = 128;
constexpr unsigned kScanThreads = 256;

// An integer in the order of the numbers; NaN is the largest, -0 and 0 are one.
__device__ int32_t OrderOf(float x) {
  if (x != x) return std::numeric_limits<int32_t>::max();
  const int32_t bits = std::bit_cast<int32_t>(x + 0.0f);
  return bits < 0 ? bits ^ 0x7FFFFFFF : bits;
}

// order [n, T], so that a column of x is read in one go.
struct OrderBody {
  ConstView x;
  int32_t* order;
  __device__ void operator()(int64_t t, int64_t i) const {
    order[i * x.rows + t] = OrderOf(x.row(t)[i]);
  }
};

__device__ uint64_t TieRank(RandomKey key, int64_t t, int64_t i) {
  const std::array<uint32_t, 4> bits = BlockOfBits(key, t, i / 4);
  return static_cast<uint64_t>(bits[i % 4]) << 32 | static_cast<uint64_t>(t);
}

// taken [n, T]: 1 for the m tokens with the largest order in each column. A block has a column.
__global__ void ChooseLargestKernel(int64_t tokens, int64_t m, RandomKey key,
                                    const int32_t* all_order, uint8_t* all_taken) {
  const int64_t i = blockIdx.x;
  const int32_t* const order = all_order + i * tokens;
  uint8_t* const taken = all_taken + i * tokens;
  // The highest bar that at least m tokens reach, by bisection.
  int64_t low = std::numeric_limits<int32_t>::min();
  int64_t high = std::numeric_limits<int32_t>::max();
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    int64_t reach = 0;
    for (int64_t t = threadIdx.x; t < tokens; t += blockDim.x)
      reach += order[t] >= middle;
    if (BlockSum(reach) >= m) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  int64_t above = 0;
  int64_t on_bar = 0;
  for (int64_t t = threadIdx.x; t < tokens; t += blockDim.x) {
    above += order[t] > low;
    on_bar += order[t] == low;
  }
  const int64_t missing = m - BlockSum(above);
  on_bar = BlockSum(on_bar);
  // Of those on it the `missing` with the smallest ranks, which all differ.
  uint64_t last = std::numeric_limits<uint64_t>::max();
  if (missing < on_bar) {
    uint64_t first = 0;
    while (first < last) {
      const uint64_t middle = first + (last - first) / 2;
      int64_t within = 0;
      for (int64_t t = threadIdx.x; t < tokens; t += blockDim.x) {
        within += order[t] == low && TieRank(key, t, i) <= middle;
      }
      if (BlockSum(within) >= missing) {
        last = middle;
      } else {
        first = middle + 1;
      }
    }
  }
  for (int64_t t = threadIdx.x; t < tokens; t += blockDim.x) {
    taken[t] = order[t] > low ||
               (order[t] == low && (missing == on_bar || TieRank(key, t, i) <= last));
  }
}

struct PackBody {
  int64_t tokens, n;
  const uint8_t* taken;  // [n, T]
  uint8_t* chosen;
  __device__ void operator()(int64_t t, int64_t byte) const {
    unsigned bits = 0;
    for (int64_t i = 8 * byte; i < 8 * byte + 8 && i < n; ++i) {
      bits |= static_cast<unsigned>(taken[i * tokens + t]) << (i % 8);
    }
    chosen[t * ((n + 7) / 8) + byte] = static_cast<uint8_t>(bits);
  }
};

struct AboveBody {
  ConstView x;
  const float* threshold;
  const int32_t* target;
  uint8_t* chosen;
  __device__ void operator()(int64_t t, int64_t byte) const {
    unsigned bits = 0;
    for (int64_t i = 8 * byte; target[t] >= 0 && i < 8 * byte + 8 && i < x.cols; ++i) {
      if (!(x.row(t)[i] <= threshold[i])) bits |= 1u << (i % 8);
    }
    chosen[t * ((x.cols + 7) / 8) + byte] = static_cast<uint8_t>(bits);
  }
};

struct CountAboveBody {
  ConstView x;
  const float* threshold;
  int32_t* count;
  __device__ void operator()(int64_t i) const {
    int32_t above = 0;
    for (int64_t t = 0; t < x.rows; ++t) above += !(x.row(t)[i] <= threshold[i]);
    count[i] = above;
  }
};

__device__ int32_t BitsIn(const uint8_t* bytes, int64_t begin, int64_t end) {
  int32_t count = 0;
  for (int64_t b = begin; b < end; ++b) {
    for (unsigned bits = bytes[b]; bits != 0; bits &= bits - 1) ++count;
  }
  return count;
}

// The sum of x over the threads before this one.
__device__ int64_t SumBefore(int64_t x) {
  __shared__ int64_t sums[kScanThreads];
  __syncthreads();
  sums[threadIdx.x] = x;
  __syncthreads();
  int64_t before = 0;
  for (unsigned i = 0; i < threadIdx.x; ++i) before += sums[i];
  return before;
}

struct CountBody {
  int64_t bytes;  // of a token
  const uint8_t* chosen;
  int32_t* count;
  __device__ void operator()(int64_t t) const {
    count[t] = BitsIn(chosen, t * bytes, (t + 1) * bytes);
  }
};

// offset [T + 1] from count [T], by one block; total: offset[T] in 64 bits.
__global__ void OffsetsKernel(int64_t tokens, const int32_t* count, int32_t* offset,
                              int64_t* total) {
  const int64_t share = (tokens + blockDim.x - 1) / blockDim.x;
  const int64_t begin = threadIdx.x * share;
  const int64_t end = begin + share < tokens ? begin + share : tokens;
  int64_t sum = 0;
  for (int64_t t = begin; t < end; ++t) sum += count[t];
  int64_t next = SumBefore(sum);
  for (int64_t t = begin; t < end; ++t) {
    offset[t] = static_cast<int32_t>(next);
    next += count[t];
  }
  const int64_t all = BlockSum(sum);
  if (threadIdx.x != 0) return;
  offset[tokens] = static_cast<int32_t>(all);
  *total = all;
}

// A block has a token.
__global__ void ChosenForwardKernel(ConstView x, const uint8_t* all_chosen,
                                    const int32_t* offset, int32_t* expert, float* gate) {
  const int64_t t = blockIdx.x;
  const int64_t bytes = (x.cols + 7) / 8;
  const uint8_t* const chosen = all_chosen + t * bytes;
  const float* const row = x.row(t);
  const int64_t share = (bytes + blockDim.x - 1) / blockDim.x;
  const int64_t begin = threadIdx.x * share < bytes ? threadIdx.x * share : bytes;
  const int64_t end = begin + share < bytes ? begin + share : bytes;
  int64_t j = offset[t] + SumBefore(BitsIn(chosen, begin, end));
  float max = -std::numeric_limits<float>::infinity();
  for (int64_t b = begin; b < end; ++b) {
    for (int bit = 0; bit < 8; ++bit) {
      if ((chosen[b] >> bit & 1) == 0) continue;
      const int64_t i = 8 * b + bit;
      expert[j] = static_cast<int32_t>(i);
      gate[j++] = row[i];
      max = MaxOf()(max, row[i]);
    }
  }
  // After this all have written.
  max = BlockMax(max);
  double sum = 0;
  for (int64_t at = offset[t] + threadIdx.x; at < offset[t + 1]; at += blockDim.x) {
    gate[at] = Exp(gate[at] - max);
    sum += gate[at];
  }
  sum = BlockSum(sum);
  for (int64_t at = offset[t] + threadIdx.x; at < offset[t + 1]; at += blockDim.x) {
    gate[at] = static_cast<float>(gate[at] / sum);
  }
}

// A block has a token.
__global__ void ChosenBackwardKernel(const int32_t* offset, const int32_t* expert,
                                     const float* gate, const float* dgate, View dx) {
  const int64_t t = blockIdx.x;
  float* const row = dx.row(t);
  for (int64_t i = threadIdx.x; i < dx.cols; i += blockDim.x) row[i] = 0;
  double mean = 0;
  for (int64_t j = offset[t] + threadIdx.x; j < offset[t + 1]; j += blockDim.x) {
    mean += static_cast<double>(gate[j]) * dgate[j];
  }
  // After this all zeros are written.
  mean = BlockSum(mean);
  for (int64_t j = offset[t] + threadIdx.x; j < offset[t + 1]; j += blockDim.x) {
    row[expert[j]] = static_cast<float>(gate[j] * (dgate[j] - mean));
  }
}

dim3 ABlockForEach(int64_t n) {
  Check(n <= INT32_MAX, "rows fit in 32 bits");
  return dim3(static_cast<unsigned>(n));
}

}  // namespace

void ChooseLargest(const Context& context, ConstMatrix x, int64_t m, RandomKey key,
                   uint8_t* chosen) {
  Check(m >= 0 && m <= x.rows, "0 <= m <= T");
  Check(x.rows <= INT32_MAX, "tokens fit in 32 bits");
  if (x.size() == 0) return;
  const Scratch<uint8_t> taken(context, x.size());
  if (m == 0) {
    CheckOk(cudaMemsetAsync(taken.data(), 0, x.size(), context.stream));
  } else {
    const Scratch<int32_t> order(context, x.size());
    ForEachElement(context, x.rows, x.cols, OrderBody{x, order.data()});
    Launch(context, ChooseLargestKernel, ABlockForEach(x.cols), kThreads, x.rows, m, key,
           order.data(), taken.data());
  }
  ForEachElement(context, x.rows, ChosenBytes(x.cols),
                 PackBody{x.rows, x.cols, taken.data(), chosen});
}

void ChooseAbove(const Context& context, ConstMatrix x, const float* threshold,
                 std::span<const int32_t> target, uint8_t* chosen) {
  Check(static_cast<int64_t>(target.size()) == x.rows, "a target for each row");
  const OnDevice<int32_t> targets(context, target);
  ForEachElement(context, x.rows, ChosenBytes(x.cols),
                 AboveBody{x, threshold, targets.data(), chosen});
}

void CountAbove(const Context& context, ConstMatrix x, const float* threshold,
                int32_t* count) {
  ForEach(context, x.cols, CountAboveBody{x, threshold, count});
}

int64_t CountChosen(const Context& context, int64_t tokens, int64_t n,
                    const uint8_t* chosen, int32_t* offset) {
  const Scratch<int32_t> count(context, tokens);
  const Scratch<int64_t> total(context, 1);
  ForEach(context, tokens, CountBody{ChosenBytes(n), chosen, count.data()});
  Launch(context, OffsetsKernel, dim3(1), kScanThreads, tokens, count.data(), offset,
         total.data());
  int64_t pairs = 0;
  context.downloads->Download(total.data(), &pairs, sizeof pairs);
  Check(pairs <= INT32_MAX, "pairs fit in 32 bits");
  return pairs;
}

void ChosenSoftmaxForward(const Context& context, ConstMatrix x, const uint8_t* chosen,
                          const int32_t* offset, int32_t* expert, float* gate) {
  Launch(context, ChosenForwardKernel, ABlockForEach(x.rows), kThreads, x, chosen, offset,
         expert, gate);
}

void ChosenSoftmaxBackward(const Context& context, const int32_t* offset,
                           const int32_t* expert, const float* gate, const float* dgate,
                           Matrix dx) {
  Launch(context, ChosenBackwardKernel, ABlockForEach(dx.rows), kThreads, offset, expert,
         gate, dgate, dx);
}

}  // namespace moe::cuda
