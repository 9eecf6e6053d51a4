// Matrices as a GPU's code sees them: what common/tensor/matrix.h has is the host's.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include "common/tensor/matrix.h"

namespace moe::cuda {

template <typename T>
struct BasicView {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  BasicView() = default;
  template <typename U>
  BasicView(const BasicMatrix<U>& x)  // NOLINT: implicit by design
      : data(x.data), rows(x.rows), cols(x.cols), stride(x.stride) {}

  __host__ __device__ T* row(int64_t r) const { return data + r * stride; }
  int64_t size() const { return rows * cols; }
};

using View = BasicView<float>;
using ConstView = BasicView<const float>;

}  // namespace moe::cuda
