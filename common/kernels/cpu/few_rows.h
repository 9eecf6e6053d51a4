// Products of few rows with a large matrix that isn't in the caches: they read each weight once, in
// the order of memory, where a BLAS would first copy the weights into its own layout.
#pragma once

#include "common/tensor/bfloat16.h"
#include "common/tensor/matrix.h"

namespace moe::cpu {

// Up to so many rows these are faster than BLAS.
inline constexpr int64_t kFewRows = 12;

// c [m, n] = a [m, k] b [k, n]
void FewRowsProduct(ConstMatrix a, ConstMatrix b, Matrix c);
void FewRowsProduct(ConstMatrix a, ConstBfloat16Matrix b, Matrix c);
// c [m, n] = a [m, k] b [n, k]^T
void FewRowsProductTransposed(ConstMatrix a, ConstMatrix b, Matrix c);
void FewRowsProductTransposed(ConstMatrix a, ConstBfloat16Matrix b, Matrix c);
// c [m, n] = a [p, m]^T b [p, n], 1 <= p <= 8
void FewOuterProducts(ConstMatrix a, ConstMatrix b, Matrix c);

}  // namespace moe::cpu
