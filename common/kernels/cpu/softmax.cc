#include "common/kernels/cpu/softmax.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/thread_pool.h"
#include "common/kernels/cpu/vector_math.h"

namespace moe::cpu {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements
// Float lanes take the sums of so many columns before they go into doubles.
constexpr int64_t kBlock = 1024;

float RowMax(const float* row, int64_t n) {
  Vec max = Splat(-std::numeric_limits<float>::infinity());
  ForLanes(n, [&](auto lanes, int64_t i) {
    max = _mm256_max_ps(max, lanes.Select(lanes.Load(row + i), max));
  });
  return MaxLanes(max);
}

// The sum of e^(row[i] - max). If `terms` isn't null it gets the terms; it may be row.
double ExpSum(const float* row, int64_t n, float max, float* terms = nullptr) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const float* block = row + begin;
    Vec sum = _mm256_setzero_ps();
    ForLanes(std::min(kBlock, n - begin), [&](auto lanes, int64_t i) {
      const Vec e = Exp(_mm256_sub_ps(lanes.Load(block + i), Splat(max)));
      sum = _mm256_add_ps(sum, lanes.Select(e, _mm256_setzero_ps()));
      if (terms != nullptr) lanes.Store(terms + begin + i, e);
    });
    total += SumLanes(_mm256_add_pd(LowDoubles(sum), HighDoubles(sum)));
  }
  return total;
}

}  // namespace

double SoftmaxCrossEntropy(const Context& context, Matrix logits,
                           std::span<const int32_t> target, float gradient_scale) {
  const int64_t n = logits.cols;
  Check(static_cast<int64_t>(target.size()) == logits.rows, "a target for each row");
  for (int32_t t : target) Check(t >= -1 && t < n, "-1 <= target < V");
  if (n == 0) return 0;
  const Scratch<double> loss(context.scratch, logits.rows);
  ForRanges(
      context.parallel, logits.rows, kGrain / n + 1, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          float* row = logits.row(r);
          loss[r] = 0;
          if (target[r] < 0) {
            if (gradient_scale != 0) std::memset(row, 0, n * sizeof(float));
            continue;
          }
          const float max = RowMax(row, n);
          const double chosen = static_cast<double>(row[target[r]]) - max;
          const double sum = ExpSum(row, n, max, gradient_scale == 0 ? nullptr : row);
          loss[r] = std::log(sum) - chosen;
          if (gradient_scale == 0) continue;
          const Vec factor = Splat(static_cast<float>(gradient_scale / sum));
          ForLanes(n, [&](auto lanes, int64_t i) {
            lanes.Store(row + i, _mm256_mul_ps(lanes.Load(row + i), factor));
          });
          row[target[r]] -= gradient_scale;
        }
      });
  double total = 0;
  for (int64_t r = 0; r < logits.rows; ++r) total += loss[r];
  return total;
}

void LogSumExp(const Context& context, ConstMatrix x, float* largest, double* sum) {
  Check(x.cols > 0, "at least one column");
  ForRanges(context.parallel, x.rows, kGrain / x.cols + 1,
            [&](int64_t begin, int64_t end) {
              for (int64_t r = begin; r < end; ++r) {
                largest[r] = RowMax(x.row(r), x.cols);
                sum[r] = ExpSum(x.row(r), x.cols, largest[r]);
              }
            });
}

void LogSoftmax(const Context& context, Matrix x) {
  if (x.cols == 0) return;
  ForRanges(context.parallel, x.rows, kGrain / x.cols + 1,
            [&](int64_t begin, int64_t end) {
              for (int64_t r = begin; r < end; ++r) {
                float* row = x.row(r);
                const float max = RowMax(row, x.cols);
                const double sum = ExpSum(row, x.cols, max);
                const Vec log_sum = Splat(static_cast<float>(max + std::log(sum)));
                ForLanes(x.cols, [&](auto lanes, int64_t i) {
                  lanes.Store(row + i, _mm256_sub_ps(lanes.Load(row + i), log_sum));
                });
              }
            });
}

}  // namespace moe::cpu
