// Elementary functions of eight floats, within a few units in the last place unless said
// otherwise. NaN in, NaN out.
#pragma once

#include <immintrin.h>

#include "common/kernels/cpu/simd.h"

namespace moe::cpu {

inline Vec Negate(Vec x) { return _mm256_xor_ps(x, Splat(-0.0f)); }
inline Vec Magnitude(Vec x) { return _mm256_andnot_ps(Splat(-0.0f), x); }

// p[0] x^n + ... + p[n].
template <int kTerms>
inline Vec Polynomial(Vec x, const float (&p)[kTerms]) {
  Vec y = Splat(p[0]);
  for (int i = 1; i < kTerms; ++i) y = _mm256_fmadd_ps(y, x, Splat(p[i]));
  return y;
}

// Zero below -87.3, e^88 above 88. Cephes expf.
inline Vec Exp(Vec x) {
  const Vec nonzero = _mm256_cmp_ps(x, Splat(-87.3f), _CMP_NLT_UQ);
  // This order of operands lets NaN through.
  x = _mm256_max_ps(Splat(-87.3f), _mm256_min_ps(Splat(88.0f), x));
  const Vec n = _mm256_round_ps(_mm256_mul_ps(x, Splat(1.44269504f)),
                                _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Vec r = _mm256_fmadd_ps(n, Splat(-0.693359375f), x);
  r = _mm256_fmadd_ps(n, Splat(2.12194440e-4f), r);
  const Vec p = Polynomial(r, {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                               4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f});
  const Vec y = _mm256_fmadd_ps(_mm256_mul_ps(r, r), p, _mm256_add_ps(r, Splat(1)));
  const __m256i exponent = _mm256_slli_epi32(
      _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(_mm256_mul_ps(y, _mm256_castsi256_ps(exponent)), nonzero);
}

inline Vec Sigmoid(Vec x) {
  return _mm256_div_ps(Splat(1), _mm256_add_ps(Splat(1), Exp(Negate(x))));
}

inline Vec Tanh(Vec x) {
  const Vec a = Magnitude(x);
  const Vec z = _mm256_mul_ps(x, x);
  const Vec p = Polynomial(z, {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f,
                               1.33314422036e-1f, -3.33332819422e-1f});
  const Vec small = _mm256_fmadd_ps(_mm256_mul_ps(p, z), x, x);
  const Vec e = Exp(_mm256_add_ps(a, a));
  const Vec large =
      _mm256_sub_ps(Splat(1), _mm256_div_ps(Splat(2), _mm256_add_ps(e, Splat(1))));
  const Vec sign = _mm256_and_ps(x, Splat(-0.0f));
  return _mm256_blendv_ps(_mm256_or_ps(large, sign), small,
                          _mm256_cmp_ps(a, Splat(0.625f), _CMP_LT_OQ));
}

// ln(1 + e^x) = max(x, 0) + ln(1 + e) given e = e^-|x|; ln(1 + e) = 2 artanh(e / (2 + e)).
inline Vec SoftplusOfExp(Vec x, Vec e) {
  const Vec t = _mm256_div_ps(e, _mm256_add_ps(Splat(2), e));
  const Vec p = Polynomial(
      _mm256_mul_ps(t, t),
      {2.0f / 15, 2.0f / 13, 2.0f / 11, 2.0f / 9, 2.0f / 7, 2.0f / 5, 2.0f / 3, 2.0f});
  return _mm256_fmadd_ps(t, p, _mm256_max_ps(Splat(0), x));
}

inline Vec Softplus(Vec x) { return SoftplusOfExp(x, Exp(Negate(Magnitude(x)))); }

// The standard normal density.
inline Vec NormalPdf(Vec x) {
  const Vec e = Exp(_mm256_mul_ps(_mm256_mul_ps(x, x), Splat(-0.5f)));
  return _mm256_mul_ps(e, Splat(0.398942280f));
}

// The standard normal distribution function, erfc(-x / sqrt 2) / 2, within 2e-7; small values keep
// a relative precision of 1e-5. Chebyshev fit of erfc from Numerical Recipes (erfcc).
inline Vec NormalCdf(Vec x) {
  const Vec a = _mm256_mul_ps(Magnitude(x), Splat(0.707106781f));
  const Vec t = _mm256_div_ps(Splat(1), _mm256_fmadd_ps(a, Splat(0.5f), Splat(1)));
  const Vec p =
      Polynomial(t, {0.17087277f, -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                     -0.18628806f, 0.09678418f, 0.37409196f, 1.00002368f, -1.26551223f});
  const Vec tail =
      _mm256_mul_ps(_mm256_mul_ps(t, Splat(0.5f)), Exp(_mm256_fmadd_ps(Negate(a), a, p)));
  return _mm256_blendv_ps(_mm256_sub_ps(Splat(1), tail), tail, x);
}

}  // namespace moe::cpu
