#include "common/kernels/cpu/sampled_softmax.h"

#include <algorithm>
#include <limits>

#include "common/kernels/arguments.h"
#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/simd.h"
#include "common/kernels/cpu/thread_pool.h"

namespace moe::cpu {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements
constexpr int64_t kColumnPanel = 64;

float Dot(const float* a, const float* b, int64_t n) {
  Vec sum = _mm256_setzero_ps();
  ForLanes(n, [&](auto lanes, int64_t i) {
    const Vec product = _mm256_mul_ps(lanes.Load(a + i), lanes.Load(b + i));
    sum = _mm256_add_ps(sum, lanes.Select(product, _mm256_setzero_ps()));
  });
  return static_cast<float>(SumLanes(_mm256_add_pd(LowDoubles(sum), HighDoubles(sum))));
}

// y += factor * x.
void AddScaled(int64_t n, float factor, const float* x, float* y) {
  ForLanes(n, [&](auto lanes, int64_t i) {
    lanes.Store(y + i,
                _mm256_fmadd_ps(Splat(factor), lanes.Load(x + i), lanes.Load(y + i)));
  });
}

}  // namespace

void TargetLogits(const Context& context, ConstMatrix x, ConstMatrix w, const float* bias,
                  std::span<const int32_t> index, std::span<const int32_t> hit,
                  Matrix logits) {
  CheckTargets(x, w, logits, index);
  const int64_t candidates = logits.cols - 1;
  Check(hit.size() == index.size(), "a hit for each row");
  for (int32_t h : hit) Check(h >= -1 && h < candidates, "-1 <= hit < candidates");
  ForRanges(context.parallel, x.rows, kGrain / (x.cols + 1) + 1,
            [&](int64_t begin, int64_t end) {
              for (int64_t t = begin; t < end; ++t) {
                float* row = logits.row(t);
                row[candidates] = index[t] < 0 ? 0
                                               : Dot(x.row(t), w.row(index[t]), x.cols) +
                                                     bias[index[t]];
                if (hit[t] >= 0) row[hit[t]] = -std::numeric_limits<float>::infinity();
              }
            });
}

void TargetLogitsBackward(const Context& context, ConstMatrix dlogits, ConstMatrix x,
                          ConstMatrix w, std::span<const int32_t> index, Matrix dw,
                          float* dbias, Matrix dx) {
  CheckTargets(x, w, dlogits, index);
  Check(dw.rows == w.rows && dw.cols == w.cols && dx.rows == x.rows && dx.cols == x.cols,
        "gradients of the shapes of w and x");
  const int64_t column = dlogits.cols - 1;
  const int64_t cols = x.cols;
  // Threads share columns, so that each element's sum stays in row order.
  const int64_t panel = x.size() < kGrain ? std::max<int64_t>(1, cols) : kColumnPanel;
  ForRanges(context.parallel, cols, panel, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < x.rows; ++t) {
      if (index[t] < 0) continue;
      const float gradient = dlogits.row(t)[column];
      AddScaled(end - begin, gradient, x.row(t) + begin, dw.row(index[t]) + begin);
      AddScaled(end - begin, gradient, w.row(index[t]) + begin, dx.row(t) + begin);
    }
  });
  for (int64_t t = 0; t < x.rows; ++t) {
    if (index[t] >= 0) dbias[index[t]] += dlogits.row(t)[column];
  }
}

}  // namespace moe::cpu
