// Optimizer updates of one tensor or a piece of one.
#pragma once

#include <cmath>
#include <span>

#include "common/kernels/cpu/context.h"
#include "common/kernels/cpu/reductions.h"
#include "common/kernels/cpu/simd.h"
#include "common/tensor/bfloat16.h"

namespace moe::cpu {

// The parameters of some elements as floats.
struct FloatWeights {
  float* w;

  template <typename Lanes>
  Vec Load(Lanes lanes, int64_t i) const {
    return lanes.Load(w + i);
  }
  template <typename Lanes>
  void Store(Lanes lanes, int64_t i, Vec value) const {
    lanes.Store(w + i, value);
  }
};

// The same as bf16, with stochastic rounding: adding random bits to the lower half of a float carries
// into the upper one with the probability that the mean demands.
struct Bfloat16Weights {
  Bfloat16* w;
  // Half a word for each element, up to a multiple of 4 words.
  const uint32_t* bits;

  template <typename Lanes>
  Vec Load(Lanes lanes, int64_t i) const {
    return lanes.Load(w + i);
  }
  template <typename Lanes>
  void Store(Lanes lanes, int64_t i, Vec value) const {
    const __m256i random = _mm256_cvtepu16_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(bits + i / 2)));
    const Vec sum =
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), random));
    // A carry would make a number of NaN.
    const Vec nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
    lanes.Store(w + i, _mm256_blendv_ps(sum, value, nan));
  }
};

// An update with its constants worked out once.
class Optimizer {
 public:
  explicit Optimizer(const OptimizerStep& step);

  // Whether elements are updated independently of each other: with SGD or a full second moment.
  bool elementwise() const { return elementwise_; }
  // g, w, m, v: [n]; elementwise; on this thread.
  void Update(int64_t n, const float* g, float* w, float* m, float* v) const {
    Update(n, g, FloatWeights{w}, m, v);
  }
  template <typename Weights>
  void Update(int64_t n, const float* g, Weights w, float* m, float* v) const {
    if (!adam_) return UpdateSgd(n, g, w);
    const Vec beta2 = Splat(beta2_);
    const Vec rest2 = Splat(1 - beta2_);
    const Vec root_correction = Splat(root_correction_);
    const Vec epsilon = Splat(epsilon_);
    UpdateAdam(n, g, w, m, [&](auto lanes, int64_t i, Vec gradient) {
      const Vec square =
          _mm256_fmadd_ps(beta2, lanes.Load(v + i),
                          _mm256_mul_ps(rest2, _mm256_mul_ps(gradient, gradient)));
      lanes.Store(v + i, square);
      return _mm256_fmadd_ps(_mm256_sqrt_ps(square), root_correction, epsilon);
    });
  }

  // Adam with the square root of the corrected second moment and epsilon as
  // denominator(lanes, i, gradient). m: unused if beta1 = 0.
  template <typename Weights, typename Denominator>
  void UpdateAdam(int64_t n, const float* g, Weights w, float* m,
                  const Denominator& denominator) const {
    const Vec scale = Splat(gradient_scale_);
    const Vec beta1 = Splat(beta1_);
    const Vec rest1 = Splat(1 - beta1_);
    const Vec rate = Splat(corrected_rate_);
    const auto descend = [&](auto lanes, int64_t i, Vec gradient, Vec mean) {
      const Vec step =
          _mm256_div_ps(_mm256_mul_ps(rate, mean), denominator(lanes, i, gradient));
      w.Store(lanes, i, _mm256_sub_ps(w.Load(lanes, i), step));
    };
    if (beta1_ == 0) {
      ForLanes(n, [&](auto lanes, int64_t i) {
        const Vec gradient = _mm256_mul_ps(scale, lanes.Load(g + i));
        descend(lanes, i, gradient, gradient);
      });
      return;
    }
    ForLanes(n, [&](auto lanes, int64_t i) {
      const Vec gradient = _mm256_mul_ps(scale, lanes.Load(g + i));
      const Vec mean =
          _mm256_fmadd_ps(beta1, lanes.Load(m + i), _mm256_mul_ps(rest1, gradient));
      lanes.Store(m + i, mean);
      descend(lanes, i, gradient, mean);
    });
  }

  // A row whose second moment v is one number.
  template <typename Weights>
  void UpdateByMean(int64_t n, const float* g, Weights w, float* m, float* v) const {
    const double scale = gradient_scale_;
    *v = Average(*v, scale * scale * SquareSumOfRow(n, g) / static_cast<double>(n));
    const Vec denominator = Splat(std::fma(std::sqrt(*v), root_correction_, epsilon_));
    UpdateAdam(n, g, w, m, [&](auto, int64_t, Vec) { return denominator; });
  }

  float gradient_scale() const { return gradient_scale_; }
  float epsilon() const { return epsilon_; }
  // 1 / sqrt(1 - beta2^count).
  float root_correction() const { return root_correction_; }
  // A moment's new average.
  float Average(float before, double square) const;

 private:
  template <typename Weights>
  void UpdateSgd(int64_t n, const float* g, Weights w) const {
    const Vec step = Splat(-rate_);
    const Vec scale = Splat(gradient_scale_);
    ForLanes(n, [&](auto lanes, int64_t i) {
      const Vec gradient = _mm256_mul_ps(scale, lanes.Load(g + i));
      w.Store(lanes, i, _mm256_fmadd_ps(step, gradient, w.Load(lanes, i)));
    });
  }

  const bool adam_;
  const bool elementwise_;
  float gradient_scale_;
  float rate_;
  float beta1_;
  float beta2_;
  // rate / (1 - beta1^count)
  float corrected_rate_;
  float root_correction_;
  float epsilon_;
};

void OptimizerUpdate(const Context& context, const OptimizerStep& step, ConstMatrix g,
                     float* w, float* m, float* v);
void UpdateRows(const Context& context, const OptimizerStep& step,
                std::span<const int32_t> index, std::span<const int64_t> count,
                ConstMatrix g, Matrix w, Matrix m, Matrix v);

}  // namespace moe::cpu
