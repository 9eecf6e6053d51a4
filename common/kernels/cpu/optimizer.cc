#include "common/kernels/cpu/optimizer.h"

#include <cmath>

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/simd.h"
#include "common/kernels/cpu/thread_pool.h"

namespace moe::cpu {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements

}  // namespace

Optimizer::Optimizer(const OptimizerStep& step)
    : adam_(step.kind == OptimizerStep::Kind::kAdam),
      gradient_scale_(step.gradient_scale),
      rate_(step.adam.rate),
      beta1_(step.adam.beta1),
      beta2_(step.adam.beta2),
      epsilon_(step.adam.epsilon) {
  const double count = static_cast<double>(step.adam.count);
  Check(!adam_ || count >= 1, "updates count from 1");
  corrected_rate_ =
      static_cast<float>(rate_ / (1 - std::pow(static_cast<double>(beta1_), count)));
  root_correction_ =
      static_cast<float>(1 / std::sqrt(1 - std::pow(static_cast<double>(beta2_), count)));
}

void Optimizer::Update(int64_t n, const float* g, float* w, float* m, float* v) const {
  adam_ ? UpdateAdam(n, g, w, m, v) : UpdateSgd(n, g, w);
}

void Optimizer::UpdateSgd(int64_t n, const float* g, float* w) const {
  const Vec step = Splat(-rate_);
  const Vec scale = Splat(gradient_scale_);
  ForLanes(n, [&](auto lanes, int64_t i) {
    const Vec gradient = _mm256_mul_ps(scale, lanes.Load(g + i));
    lanes.Store(w + i, _mm256_fmadd_ps(step, gradient, lanes.Load(w + i)));
  });
}

void Optimizer::UpdateAdam(int64_t n, const float* g, float* w, float* m,
                           float* v) const {
  const Vec scale = Splat(gradient_scale_);
  const Vec beta1 = Splat(beta1_);
  const Vec beta2 = Splat(beta2_);
  const Vec rest1 = Splat(1 - beta1_);
  const Vec rest2 = Splat(1 - beta2_);
  const Vec rate = Splat(corrected_rate_);
  const Vec root_correction = Splat(root_correction_);
  const Vec epsilon = Splat(epsilon_);
  ForLanes(n, [&](auto lanes, int64_t i) {
    const Vec gradient = _mm256_mul_ps(scale, lanes.Load(g + i));
    const Vec mean =
        _mm256_fmadd_ps(beta1, lanes.Load(m + i), _mm256_mul_ps(rest1, gradient));
    const Vec square =
        _mm256_fmadd_ps(beta2, lanes.Load(v + i),
                        _mm256_mul_ps(rest2, _mm256_mul_ps(gradient, gradient)));
    const Vec denominator =
        _mm256_fmadd_ps(_mm256_sqrt_ps(square), root_correction, epsilon);
    const Vec step = _mm256_div_ps(_mm256_mul_ps(rate, mean), denominator);
    lanes.Store(m + i, mean);
    lanes.Store(v + i, square);
    lanes.Store(w + i, _mm256_sub_ps(lanes.Load(w + i), step));
  });
}

void OptimizerUpdate(const Context& context, const OptimizerStep& step, int64_t n,
                     const float* g, float* w, float* m, float* v) {
  const Optimizer optimizer(step);
  const bool moments = step.kind == OptimizerStep::Kind::kAdam;
  ForRanges(context.parallel, n, kGrain, [&](int64_t begin, int64_t end) {
    optimizer.Update(end - begin, g + begin, w + begin, moments ? m + begin : nullptr,
                     moments ? v + begin : nullptr);
  });
}

void UpdateRows(const Context& context, const OptimizerStep& step,
                std::span<const int32_t> index, std::span<const int64_t> count, ConstMatrix g,
                Matrix w, Matrix m, Matrix v) {
  Check(static_cast<int64_t>(index.size()) == g.rows && count.size() == index.size(),
        "an index and a count for each row");
  Check(g.cols == w.cols, "equal columns");
  for (size_t i = 0; i < index.size(); ++i) {
    Check(index[i] >= 0 && index[i] < w.rows, "0 <= index < rows");
    Check(i == 0 || index[i - 1] < index[i], "ascending indices");
  }
  const bool moments = step.kind == OptimizerStep::Kind::kAdam;
  ForRanges(context.parallel, g.rows, kGrain / (g.cols + 1) + 1,
            [&](int64_t begin, int64_t end) {
              OptimizerStep of_row = step;
              for (int64_t i = begin; i < end; ++i) {
                of_row.adam.count = count[i];
                Optimizer(of_row).Update(g.cols, g.row(i), w.row(index[i]),
                                         moments ? m.row(index[i]) : nullptr,
                                         moments ? v.row(index[i]) : nullptr);
              }
            });
}

}  // namespace moe::cpu
