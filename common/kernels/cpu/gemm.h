// Matrix products by BLAS.
#pragma once

#include "common/kernels/cpu/context.h"

namespace moe::cpu {

// c [m, n] = alpha op(a) op(b) + beta c in one BLAS call on this thread.
void Sgemm(Transpose ta, Transpose tb, float alpha, ConstMatrix a, ConstMatrix b,
           float beta, Matrix c);

// The same, cut into tiles that depend on (m, n, k) alone and are shared by the threads; for few rows
// by the kernels of few_rows.h.
void Gemm(const Context& context, Transpose ta, Transpose tb, float alpha, ConstMatrix a,
          ConstMatrix b, float beta, Matrix c);

}  // namespace moe::cpu
