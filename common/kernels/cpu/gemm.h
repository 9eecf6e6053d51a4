// Matrix products by BLAS.
#pragma once

#include "common/kernels/cpu/context.h"

namespace moe::cpu {

// c [m, n] = alpha op(a) op(b) + beta c in one BLAS call on this thread.
void Sgemm(Transpose ta, Transpose tb, float alpha, ConstMatrix a, ConstMatrix b, float beta,
           Matrix c);

// The same, cut into tiles that depend on (m, n, k) alone and are shared by the threads.
void Gemm(const Context& context, Transpose ta, Transpose tb, float alpha, ConstMatrix a,
          ConstMatrix b, float beta, Matrix c);

// The `index`-th of `parts` consecutive ranges of [0, size), cut at multiples of 8.
struct Range {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
};
Range Part(int64_t size, int64_t parts, int64_t index);

// Columns [range.begin, range.end).
template <typename T>
BasicMatrix<T> Cols(BasicMatrix<T> x, Range range) {
  return BasicMatrix<T>(x.data + range.begin, x.rows, range.size(), x.stride);
}

}  // namespace moe::cpu
