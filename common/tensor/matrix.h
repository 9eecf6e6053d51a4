// Views of row-major matrices. A view owns nothing; the memory belongs to the backend that
// allocated it (common/kernels/backend.h) and must outlive the view.
#pragma once

#include <cstdint>
#include <type_traits>

namespace moe {

template <typename T>
struct BasicMatrix {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  // Elements from one row to the next; at least cols.
  int64_t stride = 0;

  BasicMatrix() = default;
  BasicMatrix(T* data, int64_t rows, int64_t cols)
      : BasicMatrix(data, rows, cols, cols) {}
  BasicMatrix(T* data, int64_t rows, int64_t cols, int64_t stride)
      : data(data), rows(rows), cols(cols), stride(stride) {}
  // A mutable view serves as a const one.
  template <typename U>
  requires(std::is_same_v<const U, T>)
      BasicMatrix(const BasicMatrix<U>& other)  // NOLINT: implicit by design
      : BasicMatrix(other.data, other.rows, other.cols, other.stride) {}

  T* row(int64_t r) const { return data + r * stride; }
  int64_t size() const { return rows * cols; }
  bool contiguous() const { return stride == cols || rows <= 1; }
  // Rows [begin, begin + count).
  BasicMatrix Rows(int64_t begin, int64_t count) const {
    return BasicMatrix(row(begin), count, cols, stride);
  }
};

using Matrix = BasicMatrix<float>;
using ConstMatrix = BasicMatrix<const float>;

}  // namespace moe
