// Parts of matrices.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/tensor/matrix.h"

namespace moe::cpu {

struct Range {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
};

// The `index`-th of `parts` consecutive ranges of [0, size), cut at multiples of 8.
inline Range Part(int64_t size, int64_t parts, int64_t index) {
  const int64_t blocks = (size + 7) / 8;
  return {std::min(size, blocks * index / parts * 8),
          std::min(size, blocks * (index + 1) / parts * 8)};
}

template <typename T>
BasicMatrix<T> Rows(BasicMatrix<T> x, Range range) {
  return x.Rows(range.begin, range.size());
}

template <typename T>
BasicMatrix<T> Cols(BasicMatrix<T> x, Range range) {
  return BasicMatrix<T>(x.data + range.begin, x.rows, range.size(), x.stride);
}

}  // namespace moe::cpu
