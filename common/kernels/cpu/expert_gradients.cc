// Weight gradients of experts, tile by tile: a tile is used while it is in the second-level cache
// and never becomes a whole gradient.
#include <algorithm>

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/experts.h"
#include "common/kernels/cpu/few_rows.h"
#include "common/kernels/cpu/gemm.h"
#include "common/kernels/cpu/optimizer.h"
#include "common/kernels/cpu/ranges.h"
#include "common/kernels/cpu/reductions.h"
#include "common/kernels/cpu/thread_pool.h"

namespace moe::cpu {
namespace {

constexpr int64_t kTileRows = 256;
constexpr int64_t kTileCols = 256;
// A tile of few outer products is made and used in slices that fit the first-level cache.
constexpr int64_t kFewOuterRows = 8;
constexpr int64_t kSliceRows = 16;

int64_t Parts(int64_t size, int64_t largest) { return (size + largest - 1) / largest; }

// The tiles of dW1 = x^T dhidden and dW2 = hidden^T gated_dy.
struct Gradients {
  ConstMatrix x;         // [p, d]
  ConstMatrix hidden;    // [p, h]
  ConstMatrix dhidden;   // [p, h]
  ConstMatrix gated_dy;  // [p, d]

  ConstMatrix left(int which) const { return which == 0 ? x : hidden; }
  ConstMatrix right(int which) const { return which == 0 ? dhidden : gated_dy; }
  int64_t row_parts(int which) const { return Parts(left(which).cols, kTileRows); }
  int64_t col_parts(int which) const { return Parts(right(which).cols, kTileCols); }
  int64_t tiles(int which) const { return row_parts(which) * col_parts(which); }
};

struct Tile {
  Range rows;  // of the weight matrix
  Range cols;
  Matrix gradient;
};

// Calls fn(index of the expert, which matrix, number of the tile, tile) for every tile of every
// expert that has rows; those with most rows first. A tile may come in several slices of rows, in
// order and on one thread.
template <typename Fn>
void ForTiles(const Context& context, const Gradients& of,
              std::span<const int64_t> begins, std::span<const int64_t> rows,
              const Fn& fn) {
  const int64_t experts = static_cast<int64_t>(rows.size());
  const Scratch<int32_t> order(context.scratch, experts);
  for (int64_t i = 0; i < experts; ++i) {
    Check(begins[i] >= 0 && rows[i] >= 0 && begins[i] + rows[i] <= of.x.rows,
          "an expert's rows lie in the batch");
    order[i] = static_cast<int32_t>(i);
  }
  std::sort(order.data(), order.data() + experts,
            [&](int32_t a, int32_t b) { return rows[a] > rows[b]; });
  const int64_t tiles = of.tiles(0) + of.tiles(1);
  const int64_t busy =
      std::count_if(rows.begin(), rows.end(), [](int64_t count) { return count > 0; });
  ForEach(context.parallel, busy * tiles, [&](int64_t task) {
    const int32_t i = order[task / tiles];
    int64_t number = task % tiles;
    const int which = number < of.tiles(0) ? 0 : 1;
    if (which == 1) number -= of.tiles(0);
    const ConstMatrix left = of.left(which).Rows(begins[i], rows[i]);
    const ConstMatrix right = of.right(which).Rows(begins[i], rows[i]);
    const Range cols =
        Part(right.cols, of.col_parts(which), number % of.col_parts(which));
    const Range all = Part(left.cols, of.row_parts(which), number / of.col_parts(which));
    const bool few = rows[i] <= kFewOuterRows;
    const int64_t step = few ? kSliceRows : kTileRows;
    const Scratch<float> scratch(context.scratch, kTileRows * kTileCols);
    for (int64_t begin = all.begin; begin < all.end; begin += step) {
      const Range slice{begin, std::min(begin + step, all.end)};
      const Tile tile{slice, cols, Matrix(scratch.data(), slice.size(), cols.size())};
      if (few) {
        FewOuterProducts(Cols(left, slice), Cols(right, cols), tile.gradient);
      } else {
        Sgemm(Transpose::kYes, Transpose::kNo, 1, Cols(left, slice), Cols(right, cols), 0,
              tile.gradient);
      }
      fn(i, which, number, tile);
    }
  });
}

Gradients CheckedGradients(ConstMatrix x, ConstMatrix hidden, ConstMatrix dhidden,
                           ConstMatrix gated_dy) {
  Check(hidden.rows == x.rows && dhidden.rows == x.rows && gated_dy.rows == x.rows &&
            gated_dy.cols == x.cols && dhidden.cols == hidden.cols,
        "[p, d], [p, h], [p, h], [p, d]");
  return {x, hidden, dhidden, gated_dy};
}

// The rows of all experts, as ForTiles wants them.
struct RowLists {
  template <typename Span, typename Get>
  RowLists(const Context& context, const Span& items, const Get& get)
      : size(items.size()), begins(context.scratch, size), counts(context.scratch, size) {
    for (size_t i = 0; i < size; ++i) {
      begins[i] = get(items[i]).begin;
      counts[i] = get(items[i]).rows;
    }
  }
  std::span<const int64_t> begin_list() const { return {begins.data(), size}; }
  std::span<const int64_t> count_list() const { return {counts.data(), size}; }

  const size_t size;
  const Scratch<int64_t> begins;
  const Scratch<int64_t> counts;
};

}  // namespace

void ExpertUpdates(const Context& context, std::span<const ExpertUpdate> updates,
                   ConstMatrix x, ConstMatrix hidden, ConstMatrix dhidden,
                   ConstMatrix gated_dy) {
  const Gradients gradients = CheckedGradients(x, hidden, dhidden, gated_dy);
  const RowLists lists(context, updates, [](const ExpertUpdate& u) { return u.expert; });
  ForTiles(context, gradients, lists.begin_list(), lists.count_list(),
           [&](int32_t i, int which, int64_t, const Tile& tile) {
             const ExpertUpdate& update = updates[i];
             const Optimizer optimizer(update.step);
             const bool moments = update.step.kind == OptimizerStep::Kind::kAdam;
             float* w = which == 0 ? update.expert.w1 : update.expert.w2;
             float* m = which == 0 ? update.m1 : update.m2;
             float* v = which == 0 ? update.v1 : update.v2;
             const int64_t stride = gradients.right(which).cols;
             for (int64_t r = 0; r < tile.gradient.rows; ++r) {
               const int64_t at = (tile.rows.begin + r) * stride + tile.cols.begin;
               optimizer.Update(tile.gradient.cols, tile.gradient.row(r), w + at,
                                moments ? m + at : nullptr, moments ? v + at : nullptr);
             }
           });
}

void ExpertSquareSums(const Context& context, std::span<const ExpertRows> experts,
                      ConstMatrix x, ConstMatrix hidden, ConstMatrix dhidden,
                      ConstMatrix gated_dy, std::span<double> sums) {
  Check(sums.size() == 2 * experts.size(), "two sums for each expert");
  const Gradients gradients = CheckedGradients(x, hidden, dhidden, gated_dy);
  const RowLists lists(context, experts, [](const ExpertRows& e) { return e; });
  const int64_t tiles = gradients.tiles(0) + gradients.tiles(1);
  const Scratch<double> tile_sums(context.scratch, experts.size() * tiles);
  std::fill_n(tile_sums.data(), experts.size() * tiles, 0.0);
  ForTiles(context, gradients, lists.begin_list(), lists.count_list(),
           [&](int32_t i, int which, int64_t number, const Tile& tile) {
             double& sum = tile_sums[i * tiles + which * gradients.tiles(0) + number];
             for (int64_t r = 0; r < tile.gradient.rows; ++r) {
               sum += SquareSumOfBlock(tile.gradient.cols, tile.gradient.row(r));
             }
           });
  for (size_t i = 0; i < experts.size(); ++i) {
    for (int which : {0, 1}) {
      const double* first = &tile_sums[i * tiles + which * gradients.tiles(0)];
      double& sum = sums[2 * i + which] = 0;
      for (int64_t t = 0; t < gradients.tiles(which); ++t) sum += first[t];
    }
  }
}

}  // namespace moe::cpu
