#include "common/kernels/cpu/few_rows_kernels.h"

#include <immintrin.h>

namespace moe::cpu {
namespace {

#ifdef __AVX512F__

using Vec = __m512;
constexpr int kLanes = 16;
// A tile's sums, and what is multiplied, fill the registers.
constexpr int64_t kMostRows = 256;
constexpr int kTileRows = 8;
constexpr int kTileVectors = 3;
constexpr int kDotRows = 4;
constexpr int kDotCols = 6;

inline Vec Zero() { return _mm512_setzero_ps(); }
inline __m256 Halves(const Vec (&v)[1]) {
  return _mm256_add_ps(_mm512_castps512_ps256(v[0]), _mm512_extractf32x8_ps(v[0], 1));
}
inline Vec Splat(float x) { return _mm512_set1_ps(x); }
inline Vec MultiplyAdd(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec Widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

struct AllLanes {
  Vec Load(const float* p) const { return _mm512_loadu_ps(p); }
  Vec Load(const Bfloat16* p) const {
    return Widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  void Store(float* p, Vec v) const { _mm512_storeu_ps(p, v); }
};

struct FirstLanes {
  explicit FirstLanes(int64_t count) : mask(static_cast<__mmask16>((1u << count) - 1)) {}
  Vec Load(const float* p) const { return _mm512_maskz_loadu_ps(mask, p); }
  Vec Load(const Bfloat16* p) const { return Widen(_mm256_maskz_loadu_epi16(mask, p)); }
  void Store(float* p, Vec v) const { _mm512_mask_storeu_ps(p, mask, v); }
  __mmask16 mask;
};

#else

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int64_t kMostRows = 48;
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;
constexpr int kDotRows = 2;
constexpr int kDotCols = 3;

inline Vec Zero() { return _mm256_setzero_ps(); }
inline __m256 Halves(const Vec (&v)[2]) { return _mm256_add_ps(v[0], v[1]); }
inline Vec Splat(float x) { return _mm256_set1_ps(x); }
inline Vec MultiplyAdd(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec Widen(__m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

struct AllLanes {
  Vec Load(const float* p) const { return _mm256_loadu_ps(p); }
  Vec Load(const Bfloat16* p) const {
    return Widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  void Store(float* p, Vec v) const { _mm256_storeu_ps(p, v); }
};

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
  __m256i mask;
  int64_t count;
};

#endif

constexpr int kLineVectors = 16 / kLanes;  // of floats
// Of a product with transposed weights each element is the sum of so many chains.
constexpr int64_t kChains = 16;
constexpr int kChainVectors = kChains / kLanes;
constexpr int64_t kLine = 64;

constexpr int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t Most(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t Parts(int64_t size, int64_t part) { return (size + part - 1) / part; }

// Memory that will be read soon, a few lines with each step of a loop.
struct Ahead {
  const char* at;
  int64_t lines;
  int64_t stride;  // bytes from one step's lines to the next one's
  void Fetch() {
    for (int64_t i = 0; i < lines; ++i) _mm_prefetch(at + i * kLine, _MM_HINT_T0);
    at += stride;
  }
  // One line after the other.
  static Ahead Stream(const char* at, int64_t lines) {
    return {at, lines, lines * kLine};
  }
  static Ahead Nothing() { return {nullptr, 0, 0}; }
};

// c [kRows, vectors] (+)= a [kRows, depth] b [depth, vectors]. kTurned: a is [depth, kRows].
template <int kRows, int kVectors, bool kTurned, typename Lanes, typename Weight>
void Tile(Lanes lanes, bool first, int64_t depth, const float* a, int64_t a_stride,
          const Weight* b, int64_t b_stride, float* c, int64_t c_stride, Ahead ahead) {
  Vec sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = first ? Zero() : lanes.Load(c + r * c_stride + v * kLanes);
    }
  }
  for (int64_t l = 0; l < depth; ++l) {
    Vec weight[kVectors];
    for (int v = 0; v < kVectors; ++v) weight[v] = lanes.Load(b + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Vec x = Splat(kTurned ? a[l * a_stride + r] : a[r * a_stride + l]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = MultiplyAdd(x, weight[v], sum[r][v]);
    }
    b += b_stride;
    ahead.Fetch();
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      lanes.Store(c + r * c_stride + v * kLanes, sum[r][v]);
    }
  }
}

// Calls fn.operator()<rows>() for 1 <= rows <= kMost.
template <int kMost, typename Fn>
inline void WithRows(int64_t rows, const Fn& fn) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return WithRows<kMost - 1>(rows, fn);
  }
  fn.template operator()<kMost>();
}

// Calls fn(begin, size, index) for `parts` ranges of [0, size) of nearly equal sizes.
template <typename Fn>
inline void ForParts(int64_t size, int64_t parts, const Fn& fn) {
  for (int64_t i = 0, begin = 0; i < parts; ++i) {
    const int64_t end = size * (i + 1) / parts;
    fn(begin, end - begin, i);
    begin = end;
  }
}

// Calls fn.operator()<vectors>(lanes, first column) for strips of n columns.
template <int kMost, typename Fn>
inline void ForStrips(int64_t n, const Fn& fn) {
  int64_t j = 0;
  for (; j + kMost * kLanes <= n; j += kMost * kLanes) {
    fn.template operator()<kMost>(AllLanes{}, j);
  }
  if (kMost > 2 && j + 2 * kLanes <= n) {
    fn.template operator()<2>(AllLanes{}, j);
    j += 2 * kLanes;
  }
  if (kMost > 1 && j + kLanes <= n) {
    fn.template operator()<1>(AllLanes{}, j);
    j += kLanes;
  }
  if (j < n) fn.template operator()<1>(FirstLanes(n - j), j);
}

// The weights are read in blocks of some rows; while one is worked on, the next one comes into the
// caches in the order of memory.
template <int kMostVectors, typename Weight>
void ProductByBlocks(const FewRowsProductArguments<Weight>& p, int64_t block_weights) {
  const int64_t step = Most(8, Least(256, block_weights / p.n / 8 * 8));
  const int64_t groups = Parts(p.m, kTileRows);
  for (int64_t l = 0; l < p.k; l += step) {
    const int64_t depth = Least(step, p.k - l);
    const Weight* const block = p.b + l * p.b_stride;
    const bool more = l + depth < p.k;
    const char* const next = reinterpret_cast<const char*>(block + depth * p.b_stride);
    ForStrips<kMostVectors>(p.n, [&]<int kVectors>(auto lanes, int64_t j) {
      constexpr int64_t kBytes = kVectors * kLanes * sizeof(Weight);
      ForParts(p.m, groups, [&](int64_t r, int64_t rows, int64_t group) {
        Ahead ahead = Ahead::Nothing();
        if (more && p.b_stride == p.n) {
          // The strips, one after the other, cover the next block.
          const int64_t part = kBytes * depth / groups;
          ahead = Ahead::Stream(next + j * depth * sizeof(Weight) + part * group,
                                Parts(part, depth * kLine));
        } else if (more && group == 0) {
          ahead = {next + j * sizeof(Weight), Parts(kBytes, kLine),
                   p.b_stride * int64_t{sizeof(Weight)}};
        }
        WithRows<kTileRows>(rows, [&]<int kRows>() {
          Tile<kRows, kVectors, false>(
              lanes, l == 0 && !p.add, depth, p.a + r * p.a_stride + l, p.a_stride,
              block + j, p.b_stride, p.c + r * p.c_stride + j, p.c_stride, ahead);
        });
      });
    });
  }
}

// Blocks and strips as measured: memory is the limit up to some eight rows, arithmetic beyond.
template <typename Weight>
void Product(const FewRowsProductArguments<Weight>& p) {
  constexpr int kVectors = Least(kTileVectors, kLineVectors * 4 / sizeof(Weight));
  // Nobody fetches the first block, so it is a small part of all.
  const int64_t part = p.n * p.k / 16;
  if (p.m <= 4) return ProductByBlocks<kVectors>(p, Least(1 << 13, part));
  if (p.m <= kTileRows) return ProductByBlocks<kVectors>(p, Least(1 << 14, part));
  ProductByBlocks<kTileVectors>(p, p.m <= 24 ? 1 << 15 : p.m <= 64 ? 1 << 16 : 1 << 17);
}

// Columns of b, and so many terms, at a time: they stay in the second-level cache.
void Outer(const FewRowsProductArguments<float>& p, const NeededNext& next) {
  constexpr int64_t kDepth = 512;
  constexpr int64_t kPanel = 1 << 15;
  constexpr int64_t kStrip = kTileVectors * kLanes;
  const int64_t panel = Most(1, kPanel / Least(p.k, kDepth) / kStrip) * kStrip;
  // Each of the tiles fetches its share, array after array.
  const int64_t tiles = Parts(p.m, kTileRows) * Parts(p.n, kStrip) * Parts(p.k, kDepth);
  const int64_t lines = Parts(next.bytes, kLine);
  const int64_t share = Parts(3 * lines, tiles);
  int64_t fetched = 0;
  const auto ahead = [&] {
    const int64_t array = fetched / Most(1, lines);
    if (array >= 3 || next.at[array] == nullptr) return Ahead::Nothing();
    const char* const at =
        static_cast<const char*>(next.at[array]) + fetched % lines * kLine;
    return Ahead::Stream(at, Parts(share, Least(p.k, kDepth)));
  };
  for (int64_t first = 0; first < p.n; first += panel) {
    const int64_t cols = Least(panel, p.n - first);
    for (int64_t l = 0; l < p.k; l += kDepth) {
      const int64_t depth = Least(kDepth, p.k - l);
      const float* const b = p.b + l * p.b_stride + first;
      for (int64_t i = 0; i < p.m; i += kTileRows) {
        const float* const a = p.a + l * p.a_stride + i;
        float* const c = p.c + i * p.c_stride + first;
        ForStrips<kTileVectors>(cols, [&]<int kVectors>(auto lanes, int64_t j) {
          WithRows<kTileRows>(Least(kTileRows, p.m - i), [&]<int kRows>() {
            Tile<kRows, kVectors, true>(lanes, l == 0, depth, a, p.a_stride, b + j,
                                        p.b_stride, c + j, p.c_stride, ahead());
          });
          fetched += share;
        });
      }
    }
  }
}

// The eight sums of the lanes of eight vectors.
inline __m256 SumEach(const __m256 (&v)[8]) {
  const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20),
                       _mm256_permute2f128_ps(a, b, 0x31));
}

// c [kRows, cols] (+)= a [kRows, k] b [cols, k]^T for cols <= kCols.
template <int kRows, int kCols, typename Weight>
void Dots(bool add_to_c, int64_t k, const float* a, int64_t a_stride, const Weight* b,
          int64_t b_stride, int64_t cols, float* c, int64_t c_stride, Ahead ahead) {
  const Weight* weight[kCols];
  for (int j = 0; j < kCols; ++j) weight[j] = b + Least(j, cols - 1) * b_stride;
  Vec sum[kRows][kCols][kChainVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kCols; ++j) {
      for (int v = 0; v < kChainVectors; ++v) sum[r][j][v] = Zero();
    }
  }
  const auto add = [&](auto lanes, int v, int64_t l) __attribute__((always_inline)) {
    Vec x[kRows];
    for (int r = 0; r < kRows; ++r) x[r] = lanes.Load(a + r * a_stride + l);
    for (int j = 0; j < kCols; ++j) {
      const Vec w = lanes.Load(weight[j] + l);
      for (int r = 0; r < kRows; ++r) sum[r][j][v] = MultiplyAdd(x[r], w, sum[r][j][v]);
    }
  };
  int64_t l = 0;
  for (; l + kChains <= k; l += kChains) {
    for (int v = 0; v < kChainVectors; ++v) add(AllLanes{}, v, l + v * kLanes);
    ahead.Fetch();
  }
  if (l < k) {
    for (int v = 0; v < kChainVectors; ++v) {
      const int64_t from = Least(l + v * kLanes, k);
      add(FirstLanes(Least(k - from, kLanes)), v, from);
    }
  }
  constexpr int kSums = kRows * kCols;
  alignas(32) float dots[(kSums + 7) / 8 * 8];
  for (int s = 0; s < kSums; s += 8) {
    __m256 eight[8];
    for (int i = 0; i < 8; ++i) {
      const int of = s + i < kSums ? s + i : kSums - 1;
      eight[i] = Halves(sum[of / kCols][of % kCols]);
    }
    _mm256_store_ps(dots + s, SumEach(eight));
  }
  for (int r = 0; r < kRows; ++r) {
    for (int64_t j = 0; j < cols; ++j) {
      float& to = c[r * c_stride + j];
      to = (add_to_c ? to : 0) + dots[r * kCols + j];
    }
  }
}

// While some rows of b are worked on, the next ones come into the caches.
template <int kCols, typename Weight>
void TransposedByRows(const FewRowsProductArguments<Weight>& p) {
  const int64_t groups = Parts(p.m, kDotRows);
  const int64_t part = kCols * p.k * sizeof(Weight) / groups;  // bytes
  const int64_t lines = Parts(part, Most(1, p.k / kChains) * kLine);
  for (int64_t j = 0; j < p.n; j += kCols) {
    const int64_t cols = Least(kCols, p.n - j);
    const Weight* const rows_of_b = p.b + j * p.b_stride;
    const char* const next =
        reinterpret_cast<const char*>(rows_of_b + kCols * p.b_stride);
    const bool more = j + cols < p.n && p.b_stride == p.k;
    ForParts(p.m, groups, [&](int64_t r, int64_t rows, int64_t group) {
      const Ahead ahead =
          more ? Ahead::Stream(next + part * group, lines) : Ahead::Nothing();
      WithRows<kDotRows>(rows, [&]<int kRows>() {
        Dots<kRows, kCols>(p.add, p.k, p.a + r * p.a_stride, p.a_stride, rows_of_b,
                           p.b_stride, cols, p.c + r * p.c_stride + j, p.c_stride, ahead);
      });
    });
  }
}

// As measured: for few rows fewer streams of weights, and for more a tile that fills the registers.
template <typename Weight>
void Transposed(const FewRowsProductArguments<Weight>& p) {
  if (p.m <= 4) return TransposedByRows<2>(p);
  if (p.m <= 8 && p.k > 512) return TransposedByRows<3>(p);
  TransposedByRows<kDotCols>(p);
}

constexpr FewRowsKernels kKernels = {
    kMostRows,         Product<float>,       Product<Bfloat16>,
    Transposed<float>, Transposed<Bfloat16>, Outer};

}  // namespace

#ifdef __AVX512F__
FewRowsKernels FewRowsAvx512() { return kKernels; }
#else
FewRowsKernels FewRowsAvx2() { return kKernels; }
#endif

}  // namespace moe::cpu
