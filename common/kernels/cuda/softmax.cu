#include <limits>
#include <vector>

#include "common/kernels/arguments.h"
#include "common/kernels/cuda/block.h"
#include "common/kernels/cuda/device_math.h"
#include "common/kernels/cuda/elements.h"
#include "common/kernels/cuda/row_lists.h"
#include "common/kernels/cuda/softmax.h"

namespace moe::cuda {
namespace {

// Whatever the length of a row: its sums must not depend on anything else.
constexpr unsigned kThreads = 256;

__device__ float RowMax(const float* row, int64_t n) {
  float max = -std::numeric_limits<float>::infinity();
  for (int64_t c = threadIdx.x; c < n; c += blockDim.x) max = MaxOf()(max, row[c]);
  return BlockMax(max);
}

// The sum of e^(row[c] - max); the terms go to `terms` unless that is null. It may be row.
__device__ double ExpSum(const float* row, int64_t n, float max, float* terms) {
  double sum = 0;
  for (int64_t c = threadIdx.x; c < n; c += blockDim.x) {
    const float term = Exp(row[c] - max);
    if (terms != nullptr) terms[c] = term;
    sum += term;
  }
  return BlockSum(sum);
}

__global__ void CrossEntropyKernel(View logits, const int32_t* target,
                                   float gradient_scale, double* loss) {
  const int64_t r = blockIdx.x;
  const int64_t n = logits.cols;
  float* const row = logits.row(r);
  const int32_t chosen = target[r];
  if (chosen < 0) {
    if (threadIdx.x == 0) loss[r] = 0;
    if (gradient_scale == 0) return;
    for (int64_t c = threadIdx.x; c < n; c += blockDim.x) row[c] = 0;
    return;
  }
  const float max = RowMax(row, n);
  const double logit = static_cast<double>(row[chosen]) - max;
  // All have read it before the terms take its place.
  __syncthreads();
  const double sum = ExpSum(row, n, max, gradient_scale == 0 ? nullptr : row);
  if (threadIdx.x == 0) loss[r] = log(sum) - logit;
  if (gradient_scale == 0) return;
  const float factor = static_cast<float>(gradient_scale / sum);
  // Each thread made the terms that it scales.
  for (int64_t c = threadIdx.x; c < n; c += blockDim.x) {
    const float gradient = row[c] * factor;
    row[c] = c == chosen ? gradient - gradient_scale : gradient;
  }
}

__global__ void LogSumExpKernel(ConstView x, float* largest, double* sums) {
  const int64_t r = blockIdx.x;
  const float max = RowMax(x.row(r), x.cols);
  const double sum = ExpSum(x.row(r), x.cols, max, nullptr);
  if (threadIdx.x != 0) return;
  largest[r] = max;
  sums[r] = sum;
}

__global__ void LogSoftmaxKernel(View x) {
  float* const row = x.row(blockIdx.x);
  const float max = RowMax(row, x.cols);
  const double sum = ExpSum(row, x.cols, max, nullptr);
  const float log_sum = static_cast<float>(max + log(sum));
  for (int64_t c = threadIdx.x; c < x.cols; c += blockDim.x) row[c] -= log_sum;
}

__global__ void TargetLogitsKernel(ConstView x, ConstView w, const float* bias,
                                   const int32_t* index, const int32_t* hit,
                                   View logits) {
  const int64_t t = blockIdx.x;
  const int64_t candidates = logits.cols - 1;
  const int32_t i = index[t];
  double sum = 0;
  if (i >= 0) {
    const float* const a = x.row(t);
    const float* const b = w.row(i);
    for (int64_t c = threadIdx.x; c < x.cols; c += blockDim.x) {
      sum += static_cast<double>(a[c]) * b[c];
    }
  }
  sum = BlockSum(sum);
  if (threadIdx.x != 0) return;
  float* const row = logits.row(t);
  row[candidates] = i < 0 ? 0 : static_cast<float>(sum) + bias[i];
  if (hit[t] >= 0) row[hit[t]] = -std::numeric_limits<float>::infinity();
}

// The rows of w that are a target, each with the tokens of which it is.
struct TargetWeightBody {
  ConstView dlogits, x;
  const int32_t* target;
  const int32_t* begin;
  const int32_t* place;
  View dw;
  float* dbias;
  __device__ void operator()(int64_t list, int64_t c) const {
    float* const to = dw.row(target[list]);
    float sum = c < dw.cols ? to[c] : dbias[target[list]];
    for (int32_t j = begin[list]; j < begin[list + 1]; ++j) {
      const float gradient = dlogits.row(place[j])[dlogits.cols - 1];
      // The column after the last is the bias.
      sum = c < dw.cols ? fmaf(gradient, x.row(place[j])[c], sum) : sum + gradient;
    }
    (c < dw.cols ? to[c] : dbias[target[list]]) = sum;
  }
};

struct TargetInputBody {
  ConstView dlogits, w;
  const int32_t* index;
  View dx;
  __device__ void operator()(int64_t t, int64_t c) const {
    if (index[t] < 0) return;
    float* const to = dx.row(t) + c;
    *to = fmaf(dlogits.row(t)[dlogits.cols - 1], w.row(index[t])[c], *to);
  }
};

dim3 ABlockForEachRow(ConstMatrix x) {
  Check(x.rows <= INT32_MAX, "rows fit in 32 bits");
  return dim3(static_cast<unsigned>(x.rows));
}

}  // namespace

double SoftmaxCrossEntropy(const Context& context, Matrix logits,
                           std::span<const int32_t> target, float gradient_scale) {
  Check(static_cast<int64_t>(target.size()) == logits.rows, "a target for each row");
  for (int32_t t : target) Check(t >= -1 && t < logits.cols, "-1 <= target < V");
  if (logits.size() == 0) return 0;
  const OnDevice<int32_t> targets(context, target);
  const Scratch<double> scratch(context, logits.rows);
  Launch(context, CrossEntropyKernel, ABlockForEachRow(logits), kThreads, logits,
         targets.data(), gradient_scale, scratch.data());
  std::vector<double> loss(logits.rows);
  context.downloads->Download(scratch.data(), loss.data(), loss.size() * sizeof(double));
  double total = 0;
  for (double of_row : loss) total += of_row;
  return total;
}

void LogSumExp(const Context& context, ConstMatrix x, float* largest, double* sum) {
  Check(x.cols > 0, "at least one column");
  const Scratch<float> largest_scratch(context, x.rows);
  const Scratch<double> sum_scratch(context, x.rows);
  Launch(context, LogSumExpKernel, ABlockForEachRow(x), kThreads, x,
         largest_scratch.data(), sum_scratch.data());
  context.downloads->Download(largest_scratch.data(), largest, x.rows * sizeof(float));
  context.downloads->Download(sum_scratch.data(), sum, x.rows * sizeof(double));
}

void LogSoftmax(const Context& context, Matrix x) {
  if (x.cols == 0) return;
  Launch(context, LogSoftmaxKernel, ABlockForEachRow(x), kThreads, x);
}

void TargetLogits(const Context& context, ConstMatrix x, ConstMatrix w, const float* bias,
                  std::span<const int32_t> index, std::span<const int32_t> hit,
                  Matrix logits) {
  CheckTargets(x, w, logits, index);
  Check(hit.size() == index.size(), "a hit for each row");
  for (int32_t h : hit) Check(h >= -1 && h < logits.cols - 1, "-1 <= hit < candidates");
  const OnDevice<int32_t> indices(context, index), hits(context, hit);
  Launch(context, TargetLogitsKernel, ABlockForEachRow(x), kThreads, x, w, bias,
         indices.data(), hits.data(), logits);
}

void TargetLogitsBackward(const Context& context, ConstMatrix dlogits, ConstMatrix x,
                          ConstMatrix w, std::span<const int32_t> index, Matrix dw,
                          float* dbias, Matrix dx) {
  CheckTargets(x, w, dlogits, index);
  Check(dw.rows == w.rows && dw.cols == w.cols && dx.rows == x.rows && dx.cols == x.cols,
        "gradients of the shapes of w and x");
  const RowLists lists(index, w.rows);
  const OnDevice<int32_t> target(context, lists.target), begin(context, lists.begin),
      place(context, lists.place), indices(context, index);
  ForEachElement(
      context, static_cast<int64_t>(lists.target.size()), dw.cols + 1,
      TargetWeightBody{dlogits, x, target.data(), begin.data(), place.data(), dw, dbias});
  ForEachElement(context, dx.rows, dx.cols,
                 TargetInputBody{dlogits, w, indices.data(), dx});
}

}  // namespace moe::cuda
