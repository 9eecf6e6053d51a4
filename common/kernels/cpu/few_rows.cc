#include "common/kernels/cpu/few_rows.h"

#include <algorithm>

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/ranges.h"
#include "common/kernels/cpu/simd.h"

namespace moe::cpu {
namespace {

// Rows of a that share a vector of b in registers.
constexpr int kGroup = 4;
// Rows of b that are read side by side, and whose successors are fetched meanwhile.
constexpr int64_t kDepth = 8;

// c [kRows, 8 kVectors] (+)= a [kRows, depth] b [depth, 8 kVectors].
template <int kRows, int kVectors, typename Lanes, typename Weight>
inline void Panel(Lanes lanes, bool first, int64_t depth, const float* a,
                  int64_t a_stride, const Weight* b, int64_t b_stride, float* c,
                  int64_t c_stride) {
  Vec sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = first ? _mm256_setzero_ps() : lanes.Load(c + r * c_stride + v * kLanes);
    }
  }
  for (int64_t l = 0; l < depth; ++l) {
    Vec weight[kVectors];
    for (int v = 0; v < kVectors; ++v)
      weight[v] = lanes.Load(b + l * b_stride + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Vec x = Splat(a[r * a_stride + l]);
      for (int v = 0; v < kVectors; ++v)
        sum[r][v] = _mm256_fmadd_ps(x, weight[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v)
      lanes.Store(c + r * c_stride + v * kLanes, sum[r][v]);
  }
}

// The rows of a and c times rows [l, l + depth) of b.
template <int kRows, typename Weight>
void Strip(int64_t l, int64_t depth, ConstMatrix a, BasicMatrix<const Weight> b, Matrix c,
           bool prefetch) {
  const Weight* from = b.row(l);
  int64_t j = 0;
  for (; j + 2 * kLanes <= c.cols; j += 2 * kLanes) {
    if (prefetch) {
      for (int64_t i = 0; i < kDepth; ++i) {
        _mm_prefetch(reinterpret_cast<const char*>(from + (kDepth + i) * b.stride + j),
                     _MM_HINT_T0);
      }
    }
    Panel<kRows, 2>(AllLanes{}, l == 0, depth, a.data + l, a.stride, from + j, b.stride,
                    c.data + j, c.stride);
  }
  if (j == c.cols) return;
  ForLanes(c.cols - j, [&](auto lanes, int64_t i) {
    Panel<kRows, 1>(lanes, l == 0, depth, a.data + l, a.stride, from + j + i, b.stride,
                    c.data + j + i, c.stride);
  });
}

// The eight sums of the lanes of eight vectors.
inline Vec SumEach(const Vec (&v)[8]) {
  const Vec a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const Vec b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20),
                       _mm256_permute2f128_ps(a, b, 0x31));
}

// Dot products of kRows rows of a with the rows of b.
template <int kRows, typename Weight>
void Dots(ConstMatrix a, BasicMatrix<const Weight> b, Matrix c) {
  constexpr int kWeights = 8 / kRows;  // rows of b at a time
  for (int64_t j = 0; j < b.rows; j += kWeights) {
    const Weight* weight[kWeights];
    for (int w = 0; w < kWeights; ++w) weight[w] = b.row(std::min(j + w, b.rows - 1));
    Vec sum[8] = {};
    ForLanes(b.cols, [&](auto lanes, int64_t l) {
      Vec x[kRows];
      for (int r = 0; r < kRows; ++r) x[r] = lanes.Load(a.data + r * a.stride + l);
      for (int w = 0; w < kWeights; ++w) {
        const Vec v = lanes.Load(weight[w] + l);
        for (int r = 0; r < kRows; ++r) {
          sum[w * kRows + r] = _mm256_fmadd_ps(x[r], v, sum[w * kRows + r]);
        }
      }
    });
    alignas(32) float dots[8];
    _mm256_store_ps(dots, SumEach(sum));
    for (int w = 0; w < kWeights && j + w < b.rows; ++w) {
      for (int r = 0; r < kRows; ++r) c.data[r * c.stride + j + w] = dots[w * kRows + r];
    }
  }
}

template <int kRows>
void OuterRows(ConstMatrix a, ConstMatrix b, Matrix c) {
  for (int64_t i = 0; i < c.rows; ++i) {
    Vec x[kRows];
    for (int p = 0; p < kRows; ++p) x[p] = Splat(a.data[p * a.stride + i]);
    float* to = c.row(i);
    ForLanes(c.cols, [&](auto lanes, int64_t j) {
      Vec sum = _mm256_mul_ps(x[0], lanes.Load(b.data + j));
      for (int p = 1; p < kRows; ++p) {
        sum = _mm256_fmadd_ps(x[p], lanes.Load(b.data + p * b.stride + j), sum);
      }
      lanes.Store(to + j, sum);
    });
  }
}

// Calls fn.operator()<rows>() for 1 <= rows <= 4.
template <typename Fn>
void WithRows(int64_t rows, const Fn& fn) {
  switch (rows) {
    case 1:
      return fn.template operator()<1>();
    case 2:
      return fn.template operator()<2>();
    case 3:
      return fn.template operator()<3>();
    default:
      return fn.template operator()<4>();
  }
}

template <typename Weight>
void Product(ConstMatrix a, BasicMatrix<const Weight> b, Matrix c) {
  Check(a.rows == c.rows && b.cols == c.cols && a.cols == b.rows,
        "[m, k] [k, n] = [m, n]");
  Check(b.rows > 0, "at least one term");
  for (int64_t l = 0; l < b.rows; l += kDepth) {
    const int64_t depth = std::min(kDepth, b.rows - l);
    for (int64_t r = 0; r < c.rows; r += kGroup) {
      const int64_t rows = std::min<int64_t>(kGroup, c.rows - r);
      const bool prefetch = r == 0 && l + 2 * kDepth <= b.rows;
      WithRows(rows, [&]<int kRows>() {
        Strip<kRows>(l, depth, a.Rows(r, rows), b, c.Rows(r, rows), prefetch);
      });
    }
  }
}

template <typename Weight>
void ProductTransposed(ConstMatrix a, BasicMatrix<const Weight> b, Matrix c) {
  Check(a.rows == c.rows && b.rows == c.cols && a.cols == b.cols,
        "[m, k] [n, k]^T = [m, n]");
  // Blocks of b stay in the first-level cache for all groups of rows.
  const int64_t block = std::max<int64_t>(8, 4096 / std::max<int64_t>(1, b.cols) / 8 * 8);
  for (int64_t j = 0; j < b.rows; j += block) {
    const Range cols{j, std::min(j + block, b.rows)};
    const BasicMatrix<const Weight> weights = Rows(b, cols);
    for (int64_t r = 0; r < c.rows; r += kGroup) {
      const int64_t rows = std::min<int64_t>(kGroup, c.rows - r);
      WithRows(rows, [&]<int kRows>() {
        Dots<kRows>(a.Rows(r, rows), weights, Cols(c.Rows(r, rows), cols));
      });
    }
  }
}

}  // namespace

void FewRowsProduct(ConstMatrix a, ConstMatrix b, Matrix c) { Product(a, b, c); }
void FewRowsProduct(ConstMatrix a, ConstBfloat16Matrix b, Matrix c) { Product(a, b, c); }

void FewRowsProductTransposed(ConstMatrix a, ConstMatrix b, Matrix c) {
  ProductTransposed(a, b, c);
}
void FewRowsProductTransposed(ConstMatrix a, ConstBfloat16Matrix b, Matrix c) {
  ProductTransposed(a, b, c);
}

void FewOuterProducts(ConstMatrix a, ConstMatrix b, Matrix c) {
  Check(a.rows == b.rows && a.cols == c.rows && b.cols == c.cols,
        "[p, m]^T [p, n] = [m, n]");
  switch (a.rows) {
    case 1:
      return OuterRows<1>(a, b, c);
    case 2:
      return OuterRows<2>(a, b, c);
    case 3:
      return OuterRows<3>(a, b, c);
    case 4:
      return OuterRows<4>(a, b, c);
    case 5:
      return OuterRows<5>(a, b, c);
    case 6:
      return OuterRows<6>(a, b, c);
    case 7:
      return OuterRows<7>(a, b, c);
    case 8:
      return OuterRows<8>(a, b, c);
    default:
      Check(false, "few rows");
  }
}

}  // namespace moe::cpu
