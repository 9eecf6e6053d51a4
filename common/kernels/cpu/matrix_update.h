// The update of a whole matrix at once: for second moments that are means over rows and columns, and
// for bf16 parameters.
#pragma once

#include "common/kernels/cpu/context.h"
#include "common/kernels/cpu/optimizer.h"
#include "common/kernels/cpu/ranges.h"
#include "common/tensor/bfloat16.h"

namespace moe::cpu {

// A matrix with its moments (backend.h); either w or w16.
struct MatrixState {
  int64_t rows;
  int64_t cols;
  float* w;
  Bfloat16* w16;
  float* m;
  float* v;
};

// First, if it takes_means: AddSquares for every tile, then TakeMeans. Then Apply for all rows.
// Different tiles, and different rows, may be worked on by several threads at once.
class MatrixUpdate {
 public:
  MatrixUpdate(const Context& context, const OptimizerStep& step,
               const MatrixState& state);

  bool takes_means() const { return factored_; }
  const TileGrid& grid() const { return grid_; }
  // gradient: that of the tile.
  void AddSquares(int64_t tile, ConstMatrix gradient);
  void TakeMeans();

  // Rows that are a sensible share of work.
  int64_t row_grain() const;
  // gradient: that of the rows.
  void Apply(Range rows, ConstMatrix gradient) const;

 private:
  template <typename Weights>
  void ApplyRow(int64_t r, const float* gradient, Weights w) const;

  const Context& context_;
  const Optimizer optimizer_;
  const MatrixState state_;
  const TileGrid grid_;
  const bool factored_;
  const RandomKey rounding_;
  // Sums of squares of each tile's rows [col_parts, rows] and columns [row_parts, cols].
  const Scratch<float> row_sums_;
  const Scratch<float> col_sums_;
  // [cols] square roots of the corrected C.
  const Scratch<float> col_roots_;
  // 1 / mean(R), or 0.
  double inverse_mean_ = 0;
};

}  // namespace moe::cpu
