// The formulas of gating on eight experts.
#pragma once

#include "common/kernels/cpu/vector_math.h"

namespace moe::cpu {

// The scale of the noise, Softplus(raw) (eq. 4), and its slope. The floor only guards divisions.
struct NoiseScale {
  explicit NoiseScale(Vec raw) {
    const Vec e = Exp(Negate(Magnitude(raw)));
    value = _mm256_max_ps(Splat(1e-20f), SoftplusOfExp(raw, e));
    const Vec upper = _mm256_div_ps(Splat(1), _mm256_add_ps(Splat(1), e));
    slope = _mm256_blendv_ps(upper, _mm256_mul_ps(e, upper), raw);
  }
  Vec value;
  Vec slope;  // Sigmoid(raw)
};

// H (eq. 4).
inline Vec NoisyLogit(Vec clean, Vec scale, Vec noise) {
  return _mm256_fmadd_ps(noise, scale, clean);
}

// P (eq. 9).
inline Vec ChosenProbability(Vec clean, Vec scale, Vec threshold) {
  return NormalCdf(_mm256_div_ps(_mm256_sub_ps(clean, threshold), scale));
}

// dP/dclean and dP/draw times `factor`; dP/dthreshold = -dP/dclean.
struct ProbabilityGradient {
  ProbabilityGradient(Vec clean, Vec raw, Vec threshold, Vec factor) {
    const NoiseScale scale(raw);
    Vec z = _mm256_div_ps(_mm256_sub_ps(clean, threshold), scale.value);
    // Far out the density is zero, but infinity times zero wouldn't be.
    z = _mm256_max_ps(Splat(-1e4f), _mm256_min_ps(Splat(1e4f), z));
    dclean = _mm256_mul_ps(factor, _mm256_div_ps(NormalPdf(z), scale.value));
    draw = _mm256_mul_ps(_mm256_mul_ps(Negate(z), dclean), scale.slope);
  }
  Vec dclean;
  Vec draw;
};

}  // namespace moe::cpu
