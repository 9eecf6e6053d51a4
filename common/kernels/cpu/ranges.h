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

// A matrix cut into tiles of at most 256 x 256, numbered row by row.
struct TileGrid {
  static constexpr int64_t kSide = 256;

  int64_t rows;
  int64_t cols;

  static int64_t Parts(int64_t size) { return (size + kSide - 1) / kSide; }
  int64_t row_parts() const { return Parts(rows); }
  int64_t col_parts() const { return Parts(cols); }
  int64_t size() const { return row_parts() * col_parts(); }
  Range RowsOf(int64_t tile) const { return Part(rows, row_parts(), tile / col_parts()); }
  Range ColsOf(int64_t tile) const { return Part(cols, col_parts(), tile % col_parts()); }
};

template <typename T>
BasicMatrix<T> Rows(BasicMatrix<T> x, Range range) {
  return x.Rows(range.begin, range.size());
}

template <typename T>
BasicMatrix<T> Cols(BasicMatrix<T> x, Range range) {
  return BasicMatrix<T>(x.data + range.begin, x.rows, range.size(), x.stride);
}

}  // namespace moe::cpu
