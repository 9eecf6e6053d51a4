// Products of few rows with a large matrix that isn't in the caches: they read each weight once, in
// the order of memory, where a BLAS would first copy the weights into its own layout. A row's result
// doesn't depend on the rows beside it.
#pragma once

#include "common/kernels/cpu/few_rows_kernels.h"
#include "common/tensor/bfloat16.h"
#include "common/tensor/matrix.h"

namespace moe::cpu {

// Up to so many rows these are faster than BLAS.
int64_t MostFewRows();

// c [m, n] = a [m, k] b [k, n]; add: added to c.
void FewRowsProduct(ConstMatrix a, ConstMatrix b, Matrix c, bool add = false);
void FewRowsProduct(ConstMatrix a, ConstBfloat16Matrix b, Matrix c);
// c [m, n] = a [m, k] b [n, k]^T; add: added to c.
void FewRowsProductTransposed(ConstMatrix a, ConstMatrix b, Matrix c, bool add = false);
void FewRowsProductTransposed(ConstMatrix a, ConstBfloat16Matrix b, Matrix c);
// c [m, n] = a [p, m]^T b [p, n], p > 0, for any number of rows: each element is one chain of fused
// multiply-adds in their order, so that a part of c has the bits of the whole. Fetches what is needed
// next.
void OuterProducts(ConstMatrix a, ConstMatrix b, Matrix c, const NeededNext& next = {});

}  // namespace moe::cpu
