#include <algorithm>
#include <vector>

#include "common/kernels/cuda/block.h"
#include "common/kernels/cuda/elements.h"
#include "common/kernels/cuda/reductions.h"

namespace moe::cuda {
namespace {

constexpr unsigned kThreads = 256;

struct BroadcastBody {
  const float* row;
  View out;
  __device__ void operator()(int64_t r, int64_t c) const { out.row(r)[c] = row[c]; }
};

// Each column's rows in order; neighbours read neighbours.
struct ColumnSumBody {
  ConstView x;
  float* sums;
  __device__ void operator()(int64_t c) const {
    float sum = 0;
    for (int64_t r = 0; r < x.rows; ++r) sum += x.row(r)[c];
    sums[c] += sum;
  }
};

struct AddBody {
  const float* x;
  float* y;
  __device__ void operator()(int64_t i) const { y[i] += x[i]; }
};

// sums[block] of squares of numbers [block * kSquareBlock, ...).
__global__ void SquareSumKernel(int64_t n, const float* x, double* sums) {
  const int64_t begin = blockIdx.x * kSquareBlock;
  const int64_t end = begin + kSquareBlock < n ? begin + kSquareBlock : n;
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    sum = fma(static_cast<double>(x[i]), static_cast<double>(x[i]), sum);
  }
  sum = BlockSum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// found[row]: how many threads met an infinity or a NaN.
__global__ void NotFiniteKernel(ConstView x, int32_t* found) {
  const float* const row = x.row(blockIdx.x);
  int32_t bad = 0;
  for (int64_t c = threadIdx.x; c < x.cols; c += blockDim.x) {
    // The difference of infinities is NaN.
    const float zero = row[c] - row[c];
    if (zero != 0) bad = 1;
  }
  bad = BlockSum(bad);
  if (threadIdx.x == 0) found[blockIdx.x] = bad;
}

}  // namespace

void BroadcastRow(const Context& context, const float* row, Matrix out) {
  ForEachElement(context, out.rows, out.cols, BroadcastBody{row, out});
}

void AddColumnSums(const Context& context, ConstMatrix x, float* sums) {
  ForEach(context, x.cols, ColumnSumBody{x, sums});
}

void Add(const Context& context, int64_t n, const float* x, float* y) {
  ForEach(context, n, AddBody{x, y});
}

double SquareSum(const Context& context, int64_t n, const float* x) {
  const unsigned blocks = BlocksFor(n, kSquareBlock);
  const Scratch<double> scratch(context, blocks);
  Launch(context, SquareSumKernel, dim3(blocks), kThreads, n, x, scratch.data());
  std::vector<double> sums(blocks);
  context.downloads->Download(scratch.data(), sums.data(), blocks * sizeof(double));
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

bool AllFinite(const Context& context, ConstMatrix x) {
  if (x.size() == 0) return true;
  Check(x.rows <= INT32_MAX, "rows fit in 32 bits");
  const Scratch<int32_t> scratch(context, x.rows);
  Launch(context, NotFiniteKernel, dim3(static_cast<unsigned>(x.rows)),
         ThreadsFor(x.cols), x, scratch.data());
  std::vector<int32_t> found(x.rows);
  context.downloads->Download(scratch.data(), found.data(), x.rows * sizeof(int32_t));
  return std::all_of(found.begin(), found.end(), [](int32_t bad) { return bad == 0; });
}

}  // namespace moe::cuda
