// Loops over vectors of eight floats whose last, incomplete vector goes through the same
// arithmetic as the others.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "common/tensor/bfloat16.h"

namespace moe::cpu {

using Vec = __m256;
inline constexpr int64_t kLanes = 8;

inline Vec Splat(float x) { return _mm256_set1_ps(x); }

// A whole vector. Of a bf16 number the upper half of the lane is stored.
struct AllLanes {
  Vec Load(const float* p) const { return _mm256_loadu_ps(p); }
  Vec Load(const Bfloat16* p) const {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  void Store(float* p, Vec v) const { _mm256_storeu_ps(p, v); }
  void Store(Bfloat16* p, Vec v) const {
    const __m256i halves = _mm256_srli_epi32(_mm256_castps_si256(v), 16);
    const __m256i packed =
        _mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0b1000);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  // v in the lanes that count, other elsewhere.
  Vec Select(Vec v, Vec) const { return v; }
};

// The first `count` lanes of a vector; the others load as zero and aren't stored.
struct FirstLanes {
  explicit FirstLanes(int64_t count)
      : mask(_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                                _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))),
        count(count) {}
  Vec Load(const float* p) const { return _mm256_maskload_ps(p, mask); }
  Vec Load(const Bfloat16* p) const {
    Bfloat16 whole[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) whole[i] = p[i];
    return AllLanes{}.Load(whole);
  }
  void Store(float* p, Vec v) const { _mm256_maskstore_ps(p, mask, v); }
  void Store(Bfloat16* p, Vec v) const {
    Bfloat16 whole[kLanes];
    AllLanes{}.Store(whole, v);
    for (int64_t i = 0; i < count; ++i) p[i] = whole[i];
  }
  Vec Select(Vec v, Vec other) const {
    return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(mask));
  }

  __m256i mask;
  int64_t count;
};

// Calls body(lanes, i) for i = 0, 8, 16, ... < n.
template <typename Body>
inline void ForLanes(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(AllLanes{}, i);
  if (i < n) body(FirstLanes(n - i), i);
}

// The sum of the lanes, always in the same order.
inline float SumLanes(Vec v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  s = _mm_add_ss(s, _mm_movehdup_ps(s));
  return _mm_cvtss_f32(s);
}

inline float MaxLanes(Vec v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  s = _mm_max_ss(s, _mm_movehdup_ps(s));
  return _mm_cvtss_f32(s);
}

inline double SumLanes(__m256d v) {
  __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}

inline __m256d LowDoubles(Vec v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
inline __m256d HighDoubles(Vec v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }

}  // namespace moe::cpu
