#include "common/kernels/cpu/gemm.h"

#include <cblas.h>

#include <algorithm>
#include <climits>

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/few_rows.h"
#include "common/kernels/cpu/ranges.h"
#include "common/kernels/cpu/thread_pool.h"

namespace moe::cpu {
namespace {

// Each tile packs its operands anew, so it must be large in both directions; but a product of some
// milliseconds should still have a tile for each thread of a machine. Tiles of this size cost up to
// 6 % of speed on one thread.
constexpr int64_t kTileRows = 256;
constexpr int64_t kTileCols = 1024;
constexpr int64_t kSmallestSide = 64;
constexpr int64_t kEnoughTiles = 8;
constexpr int64_t kSmallestTile = 1 << 21;  // multiply-adds
constexpr int64_t kFewRowsCols = 256;

CBLAS_TRANSPOSE ToCblas(Transpose t) {
  return t == Transpose::kYes ? CblasTrans : CblasNoTrans;
}

void Scale(float beta, Matrix c) {
  for (int64_t r = 0; r < c.rows; ++r) {
    float* row = c.row(r);
    for (int64_t i = 0; i < c.cols; ++i) row[i] = beta == 0 ? 0 : beta * row[i];
  }
}

// Rows [range] of op(a), or columns [range] of op(b) by the other transpose.
ConstMatrix CutRows(Transpose t, ConstMatrix a, Range range) {
  return t == Transpose::kYes ? Cols(a, range) : Rows(a, range);
}

// Columns of c in parts that the threads share.
void FewRowsGemm(const Context& context, Transpose tb, ConstMatrix a, ConstMatrix b,
                 bool add, Matrix c) {
  const int64_t parts = c.rows * c.cols * a.cols < 2 * kSmallestTile
                            ? 1
                            : std::max<int64_t>(1, c.cols / kFewRowsCols);
  ForEach(context.parallel, parts, [&](int64_t i) {
    const Range cols = Part(c.cols, parts, i);
    if (tb == Transpose::kYes) {
      FewRowsProductTransposed(a, Rows(b, cols), Cols(c, cols), add);
    } else {
      FewRowsProduct(a, Cols(b, cols), Cols(c, cols), add);
    }
  });
}

}  // namespace

void Sgemm(Transpose ta, Transpose tb, float alpha, ConstMatrix a, ConstMatrix b,
           float beta, Matrix c) {
  const bool a_turned = ta == Transpose::kYes;
  const bool b_turned = tb == Transpose::kYes;
  const int64_t m = c.rows;
  const int64_t n = c.cols;
  const int64_t k = a_turned ? a.rows : a.cols;
  Check((a_turned ? a.cols : a.rows) == m, "op(a) has the rows of c");
  Check((b_turned ? b.rows : b.cols) == n, "op(b) has the columns of c");
  Check((b_turned ? b.cols : b.rows) == k, "op(a) has as many columns as op(b) has rows");
  if (m == 0 || n == 0) return;
  if (k == 0) return Scale(beta, c);
  const auto stride = [](const auto& x) { return std::max<int64_t>(x.stride, x.cols); };
  Check(std::max({m, n, k, stride(a), stride(b), stride(c)}) <= INT_MAX,
        "sizes below 2^31");
  cblas_sgemm(CblasRowMajor, ToCblas(ta), ToCblas(tb), static_cast<int>(m),
              static_cast<int>(n), static_cast<int>(k), alpha, a.data,
              static_cast<int>(stride(a)), b.data, static_cast<int>(stride(b)), beta,
              c.data, static_cast<int>(stride(c)));
}

void Gemm(const Context& context, Transpose ta, Transpose tb, float alpha, ConstMatrix a,
          ConstMatrix b, float beta, Matrix c) {
  const int64_t m = c.rows;
  const int64_t n = c.cols;
  const int64_t k = ta == Transpose::kYes ? a.rows : a.cols;
  if (ta == Transpose::kNo && alpha == 1 && (beta == 0 || beta == 1) && m > 0 && k > 0 &&
      m <= MostFewRows()) {
    return FewRowsGemm(context, tb, a, b, beta == 1, c);
  }
  int64_t row_parts = std::max<int64_t>(1, (m + kTileRows - 1) / kTileRows);
  int64_t col_parts = std::max<int64_t>(1, (n + kTileCols - 1) / kTileCols);
  while (row_parts * col_parts < kEnoughTiles &&
         m * n / (row_parts * col_parts) * k >= 2 * kSmallestTile) {
    const int64_t rows = m / row_parts;
    const int64_t cols = n / col_parts;
    if (std::max(rows, cols) < 2 * kSmallestSide) break;
    (rows > cols ? row_parts : col_parts) *= 2;
  }
  ForEach(context.parallel, row_parts * col_parts, [&](int64_t tile) {
    // Neighbours in the order of work share their columns of op(b).
    const Range rows = Part(m, row_parts, tile % row_parts);
    const Range cols = Part(n, col_parts, tile / row_parts);
    const Transpose tb_rows = tb == Transpose::kYes ? Transpose::kNo : Transpose::kYes;
    Sgemm(ta, tb, alpha, CutRows(ta, a, rows), CutRows(tb_rows, b, cols), beta,
          Cols(Rows(c, rows), cols));
  });
}

}  // namespace moe::cpu
