// The elementary functions of common/kernels/cpu/vector_math.h for one float: the same polynomials in
// the same order, so that both kinds of device round alike.
#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <cstdint>

namespace moe::cuda {

template <int kTerms>
__host__ __device__ inline float Polynomial(float x, const float (&p)[kTerms]) {
  float y = p[0];
  for (int i = 1; i < kTerms; ++i) y = fmaf(y, x, p[i]);
  return y;
}

// Zero below -87.3, e^88 above 88; NaN stays.
__host__ __device__ inline float Exp(float x) {
  if (x < -87.3f) return 0;
  if (x > 88) x = 88;
  const float n = rintf(x * 1.44269504f);
  float r = fmaf(n, -0.693359375f, x);
  r = fmaf(n, 2.12194440e-4f, r);
  const float p = Polynomial(r, {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f});
  const float y = fmaf(r * r, p, r + 1);
  const int exponent = x == x ? static_cast<int>(n) + 127 : 127;
  return y * std::bit_cast<float>(exponent << 23);
}

__host__ __device__ inline float Sigmoid(float x) { return 1 / (1 + Exp(-x)); }

__host__ __device__ inline float Tanh(float x) {
  const float a = fabsf(x);
  if (a < 0.625f) {
    const float z = x * x;
    const float p =
        Polynomial(z, {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f,
                       1.33314422036e-1f, -3.33332819422e-1f});
    return fmaf(p * z, x, x);
  }
  return copysignf(1 - 2 / (Exp(a + a) + 1), x);
}

// ln(1 + e^x), given e = e^-|x|.
__host__ __device__ inline float SoftplusOfExp(float x, float e) {
  const float t = e / (2 + e);
  const float p = Polynomial(t * t, {2.0f / 15, 2.0f / 13, 2.0f / 11, 2.0f / 9, 2.0f / 7,
                                     2.0f / 5, 2.0f / 3, 2.0f});
  return fmaf(t, p, x < 0 ? 0 : x);
}

__host__ __device__ inline float NormalPdf(float x) {
  return Exp(x * x * -0.5f) * 0.398942280f;
}

__host__ __device__ inline float NormalCdf(float x) {
  const float a = fabsf(x) * 0.707106781f;
  const float t = 1 / fmaf(a, 0.5f, 1.0f);
  const float p =
      Polynomial(t, {0.17087277f, -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                     -0.18628806f, 0.09678418f, 0.37409196f, 1.00002368f, -1.26551223f});
  const float tail = t * 0.5f * Exp(fmaf(-a, a, p));
  return std::bit_cast<int32_t>(x) < 0 ? tail : 1 - tail;
}

}  // namespace moe::cuda
