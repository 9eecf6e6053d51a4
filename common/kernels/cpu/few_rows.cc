#include "common/kernels/cpu/few_rows.h"

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/few_rows_kernels.h"

namespace moe::cpu {
namespace {

template <typename Weight>
FewRowsProductArguments<Weight> Arguments(ConstMatrix a, BasicMatrix<const Weight> b,
                                          Matrix c, int64_t k, bool add = false) {
  Check(k > 0, "at least one term");
  return {c.rows, c.cols, k, a.data, a.stride, b.data, b.stride, c.data, c.stride, add};
}

template <typename Weight>
FewRowsProductArguments<Weight> Plain(ConstMatrix a, BasicMatrix<const Weight> b,
                                      Matrix c, bool add = false) {
  Check(a.rows == c.rows && b.cols == c.cols && a.cols == b.rows,
        "[m, k] [k, n] = [m, n]");
  return Arguments(a, b, c, a.cols, add);
}

template <typename Weight>
FewRowsProductArguments<Weight> Transposed(ConstMatrix a, BasicMatrix<const Weight> b,
                                           Matrix c, bool add = false) {
  Check(a.rows == c.rows && b.rows == c.cols && a.cols == b.cols,
        "[m, k] [n, k]^T = [m, n]");
  return Arguments(a, b, c, a.cols, add);
}

}  // namespace

bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512cd");
}

const FewRowsKernels& BestFewRows() {
  static const FewRowsKernels kernels = HasAvx512() ? FewRowsAvx512() : FewRowsAvx2();
  return kernels;
}

int64_t MostFewRows() { return BestFewRows().most_rows; }

void FewRowsProduct(ConstMatrix a, ConstMatrix b, Matrix c, bool add) {
  if (c.rows == 0 || c.cols == 0) return;
  BestFewRows().product(Plain(a, b, c, add));
}
void FewRowsProduct(ConstMatrix a, ConstBfloat16Matrix b, Matrix c) {
  if (c.rows == 0 || c.cols == 0) return;
  BestFewRows().product16(Plain(a, b, c));
}

void FewRowsProductTransposed(ConstMatrix a, ConstMatrix b, Matrix c, bool add) {
  if (c.rows == 0 || c.cols == 0) return;
  BestFewRows().transposed(Transposed(a, b, c, add));
}
void FewRowsProductTransposed(ConstMatrix a, ConstBfloat16Matrix b, Matrix c) {
  if (c.rows == 0 || c.cols == 0) return;
  BestFewRows().transposed16(Transposed(a, b, c));
}

void OuterProducts(ConstMatrix a, ConstMatrix b, Matrix c, const NeededNext& next) {
  Check(a.rows == b.rows && a.cols == c.rows && b.cols == c.cols,
        "[p, m]^T [p, n] = [m, n]");
  if (c.rows == 0 || c.cols == 0) return;
  BestFewRows().outer(Arguments(a, b, c, a.rows), next);
}

}  // namespace moe::cpu
