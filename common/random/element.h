// One number at a time, on the host and on a GPU: the same as FillBits, FillUniform and FillNormal of
// random.h give.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

#include "common/random/philox.h"
#include "common/random/random.h"

#ifdef __CUDACC__
#define MOE_HOST_DEVICE __host__ __device__
#else
#define MOE_HOST_DEVICE
#endif

namespace moe {

// Words 4 block .. 4 block + 3 of a row.
MOE_HOST_DEVICE inline std::array<uint32_t, 4> BlockOfBits(RandomKey key, uint64_t row,
                                                           uint64_t block) {
  return Philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                     static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32)},
                    {key.k0, key.k1});
}

// Multiples of 2^-24, in [0, 1).
MOE_HOST_DEVICE inline float UniformOfBits(uint32_t bits) {
  return static_cast<float>(bits >> 8) * 0x1p-24f;
}

// ln(x) for normal x > 0 (random.cc).
MOE_HOST_DEVICE inline float LogOfUniform(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t exponent = (bits - 0x3F3504F3) >> 23;
  const float e = static_cast<float>(exponent);
  const float m = std::bit_cast<float>(bits - exponent * (1 << 23));
  const float f = m - 1;
  const float z = f * f;
  const float terms[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                         -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                         2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  float p = terms[0];
  for (int i = 1; i < 9; ++i) p = fmaf(p, f, terms[i]);
  float y = f * z * p;
  y = fmaf(e, -2.12194440e-4f, y);
  y = fmaf(z, -0.5f, y);
  return fmaf(e, 0.693359375f, f + y);
}

// The standard normal number of a word that is the first (cosine) or the second (sine) of its pair.
MOE_HOST_DEVICE inline float NormalOfBits(uint32_t first, uint32_t second, bool sine) {
  const float radius_uniform = static_cast<float>((first >> 8) + 1) * 0x1p-24f;
  const float radius = sqrtf(-2 * LogOfUniform(radius_uniform));
  const float quarters = UniformOfBits(second) * 4;
  const float rounded = rintf(quarters);
  const int q = static_cast<int>(rounded);
  const float a = (quarters - rounded) * 1.57079632679f;
  const float z = a * a;
  float s = -1.9515295891e-4f;
  s = fmaf(s, z, 8.3321608736e-3f);
  s = fmaf(s, z, -1.6666654611e-1f);
  s = fmaf(s * z, a, a);
  float c = 2.443315711809948e-5f;
  c = fmaf(c, z, -1.388731625493765e-3f);
  c = fmaf(c, z, 4.166664568298827e-2f);
  c = fmaf(c * z, z, fmaf(z, -0.5f, 1.0f));
  const int turn = sine ? q : q + 1;
  // Odd quarters swap sine and cosine; of two halves the second is negative.
  float value = (q & 1) == (sine ? 1 : 0) ? c : s;
  if ((turn & 2) != 0) value = -value;
  return radius * value;
}

}  // namespace moe
