// Matrix products by cuBLAS.
//
// Which of its kernels cuBLAS takes may depend on how operands are aligned. So all are given to it with
// addresses that are multiples of 16 bytes and strides of 4 floats; others are copied first.
#pragma once

#include "common/kernels/cuda/context.h"

namespace moe::cuda {

inline constexpr int64_t kStrideUnit = 4;  // floats
inline int64_t AlignedStride(int64_t cols) {
  return (cols + kStrideUnit - 1) / kStrideUnit * kStrideUnit;
}

// c = alpha op(a) op(b) + beta c.
void Gemm(const Context& context, Transpose ta, Transpose tb, float alpha, ConstMatrix a,
          ConstMatrix b, float beta, Matrix c);

// c = op(a) op(b).
struct Product {
  Transpose ta = Transpose::kNo;
  Transpose tb = Transpose::kNo;
  ConstMatrix a;
  ConstMatrix b;
  Matrix c;
};

// All of them, in one call where cuBLAS has such calls (12.5).
void Products(const Context& context, std::span<const Product> products);

}  // namespace moe::cuda
