#include "common/random/random.h"

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>

#include "common/random/philox.h"

namespace moe {
namespace {

// Element (row, c) is word c % 4 of the Philox block with counter (c / 4, row), each 64 bits wide.
// Eight blocks are made at a time, one per vector lane; the last group of a row is made whole and
// cut, so a number doesn't depend on the length that was asked for.
constexpr size_t kBlocks = 8;
constexpr size_t kGroup = 4 * kBlocks;

// Word w of blocks 0 ... 7 in words[w].
struct Blocks {
  __m256i words[4];
};

inline void MultiplyWide(__m256i a, __m256i multiplier, __m256i& high, __m256i& low) {
  const __m256i even = _mm256_mul_epu32(a, multiplier);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), multiplier);
  low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
  high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}

inline Blocks MakeBlocks(RandomKey key, uint64_t row, uint64_t first_block) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  // first_block is a multiple of 8, so that the low word never carries within the group.
  __m256i x0 = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(first_block)), lane);
  __m256i x1 = _mm256_set1_epi32(static_cast<int>(first_block >> 32));
  __m256i x2 = _mm256_set1_epi32(static_cast<int>(row));
  __m256i x3 = _mm256_set1_epi32(static_cast<int>(row >> 32));
  const __m256i multiplier0 = _mm256_set1_epi32(static_cast<int>(kPhiloxMultiplier0));
  const __m256i multiplier1 = _mm256_set1_epi32(static_cast<int>(kPhiloxMultiplier1));
  uint32_t k0 = key.k0;
  uint32_t k1 = key.k1;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    __m256i high0, low0, high1, low1;
    MultiplyWide(x0, multiplier0, high0, low0);
    MultiplyWide(x2, multiplier1, high1, low1);
    x0 = _mm256_xor_si256(_mm256_xor_si256(high1, x1),
                          _mm256_set1_epi32(static_cast<int>(k0)));
    x1 = low1;
    x2 = _mm256_xor_si256(_mm256_xor_si256(high0, x3),
                          _mm256_set1_epi32(static_cast<int>(k1)));
    x3 = low0;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return {{x0, x1, x2, x3}};
}

// Writes words[0 ... 3] of blocks 0 ... 7 in element order.
template <typename T>
inline void StoreInOrder(const __m256i (&words)[4], T* out) {
  const __m256i a = _mm256_unpacklo_epi32(words[0], words[1]);
  const __m256i b = _mm256_unpackhi_epi32(words[0], words[1]);
  const __m256i c = _mm256_unpacklo_epi32(words[2], words[3]);
  const __m256i d = _mm256_unpackhi_epi32(words[2], words[3]);
  const __m256i blocks04 = _mm256_unpacklo_epi64(a, c);
  const __m256i blocks15 = _mm256_unpackhi_epi64(a, c);
  const __m256i blocks26 = _mm256_unpacklo_epi64(b, d);
  const __m256i blocks37 = _mm256_unpackhi_epi64(b, d);
  __m256i* to = reinterpret_cast<__m256i*>(out);
  _mm256_storeu_si256(to + 0, _mm256_permute2x128_si256(blocks04, blocks15, 0x20));
  _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(blocks26, blocks37, 0x20));
  _mm256_storeu_si256(to + 2, _mm256_permute2x128_si256(blocks04, blocks15, 0x31));
  _mm256_storeu_si256(to + 3, _mm256_permute2x128_si256(blocks26, blocks37, 0x31));
}

// Uniform multiples of 2^-24: in [0, 1) for offset 0, in (0, 1] for offset 1.
inline __m256 ToUniform(__m256i bits, int offset) {
  const __m256i integer =
      _mm256_add_epi32(_mm256_srli_epi32(bits, 8), _mm256_set1_epi32(offset));
  return _mm256_mul_ps(_mm256_cvtepi32_ps(integer), _mm256_set1_ps(0x1p-24f));
}

inline __m256 Constant(float x) { return _mm256_set1_ps(x); }

// ln(x) for normal x > 0: x = 2^e m with m in [sqrt(1/2), sqrt(2)), polynomial of Cephes logf.
inline __m256 Log(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i exponent =
      _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3F3504F3)), 23);
  const __m256 e = _mm256_cvtepi32_ps(exponent);
  const __m256 m =
      _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(exponent, 23)));
  const __m256 f = _mm256_sub_ps(m, Constant(1));
  const __m256 z = _mm256_mul_ps(f, f);
  __m256 p = Constant(7.0376836292e-2f);
  for (float c :
       {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
        -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f}) {
    p = _mm256_fmadd_ps(p, f, Constant(c));
  }
  __m256 y = _mm256_mul_ps(_mm256_mul_ps(f, z), p);
  y = _mm256_fmadd_ps(e, Constant(-2.12194440e-4f), y);
  y = _mm256_fmadd_ps(z, Constant(-0.5f), y);
  return _mm256_fmadd_ps(e, Constant(0.693359375f), _mm256_add_ps(f, y));
}

// sin and cos of 2 pi u for u in [0, 1], by quarter turns: u = (q + f) / 4, |f| <= 1/2, exactly.
inline void SinCosTurns(__m256 u, __m256& sine, __m256& cosine) {
  const __m256 quarters = _mm256_mul_ps(u, Constant(4));
  const __m256 rounded =
      _mm256_round_ps(quarters, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256i q = _mm256_cvtps_epi32(rounded);
  const __m256 a =
      _mm256_mul_ps(_mm256_sub_ps(quarters, rounded), Constant(1.57079632679f));
  const __m256 z = _mm256_mul_ps(a, a);
  __m256 s = Constant(-1.9515295891e-4f);
  s = _mm256_fmadd_ps(s, z, Constant(8.3321608736e-3f));
  s = _mm256_fmadd_ps(s, z, Constant(-1.6666654611e-1f));
  s = _mm256_fmadd_ps(_mm256_mul_ps(s, z), a, a);
  __m256 c = Constant(2.443315711809948e-5f);
  c = _mm256_fmadd_ps(c, z, Constant(-1.388731625493765e-3f));
  c = _mm256_fmadd_ps(c, z, Constant(4.166664568298827e-2f));
  c = _mm256_fmadd_ps(_mm256_mul_ps(c, z), z,
                      _mm256_fmadd_ps(z, Constant(-0.5f), Constant(1)));
  const __m256 swap = _mm256_castsi256_ps(_mm256_slli_epi32(q, 31));
  const __m256i two = _mm256_set1_epi32(2);
  const __m256i sine_sign = _mm256_slli_epi32(_mm256_and_si256(q, two), 30);
  const __m256i cosine_sign = _mm256_slli_epi32(
      _mm256_and_si256(_mm256_add_epi32(q, _mm256_set1_epi32(1)), two), 30);
  sine = _mm256_xor_ps(_mm256_blendv_ps(s, c, swap), _mm256_castsi256_ps(sine_sign));
  cosine = _mm256_xor_ps(_mm256_blendv_ps(c, s, swap), _mm256_castsi256_ps(cosine_sign));
}

inline void BoxMuller(__m256i bits0, __m256i bits1, __m256i& normal0, __m256i& normal1) {
  const __m256 radius =
      _mm256_sqrt_ps(_mm256_mul_ps(Constant(-2), Log(ToUniform(bits0, 1))));
  __m256 sine, cosine;
  SinCosTurns(ToUniform(bits1, 0), sine, cosine);
  normal0 = _mm256_castps_si256(_mm256_mul_ps(radius, cosine));
  normal1 = _mm256_castps_si256(_mm256_mul_ps(radius, sine));
}

template <typename T, typename Convert>
void Fill(RandomKey key, uint64_t row, std::span<T> out, Convert convert) {
  size_t c = 0;
  for (; c + kGroup <= out.size(); c += kGroup) {
    Blocks blocks = MakeBlocks(key, row, c / 4);
    convert(blocks);
    StoreInOrder(blocks.words, out.data() + c);
  }
  if (c < out.size()) {
    T group[kGroup];
    Blocks blocks = MakeBlocks(key, row, c / 4);
    convert(blocks);
    StoreInOrder(blocks.words, group);
    std::memcpy(out.data() + c, group, (out.size() - c) * sizeof(T));
  }
}

}  // namespace

RandomKey MakeKey(uint64_t seed, Purpose purpose, const RandomIds& ids) {
  const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  const auto high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
  const std::array<uint32_t, 4> first = Philox4x32(
      {static_cast<uint32_t>(purpose), ids.layer, low(ids.step), high(ids.step)},
      {low(seed), high(seed)});
  const std::array<uint32_t, 4> second =
      Philox4x32({ids.wave, ids.replica, ids.tensor, ids.group}, {first[0], first[1]});
  return {second[0], second[1]};
}

void FillBits(RandomKey key, uint64_t row, std::span<uint32_t> out) {
  Fill(key, row, out, [](Blocks&) {});
}

uint32_t Bits(RandomKey key, uint64_t row, uint64_t column) {
  const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  const auto high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
  const uint64_t block = column / 4;
  return Philox4x32({low(block), high(block), low(row), high(row)},
                    {key.k0, key.k1})[column % 4];
}

void FillUniform(RandomKey key, uint64_t row, std::span<float> out) {
  Fill(key, row, out, [](Blocks& blocks) {
    for (__m256i& word : blocks.words) word = _mm256_castps_si256(ToUniform(word, 0));
  });
}

void FillNormal(RandomKey key, uint64_t row, std::span<float> out) {
  Fill(key, row, out, [](Blocks& blocks) {
    __m256i(&w)[4] = blocks.words;
    BoxMuller(w[0], w[1], w[0], w[1]);
    BoxMuller(w[2], w[3], w[2], w[3]);
  });
}

}  // namespace moe
