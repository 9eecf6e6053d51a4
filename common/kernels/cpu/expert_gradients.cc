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

// The tiles of dW_1 = x^T dhidden_1, dW_i = hidden_(i-1)^T dhidden_i and dW_(m+1) =
// hidden_m^T gated_dy; matrices count from 0.
struct Gradients {
  ConstMatrix x;                         // [p, d]
  std::span<const ConstMatrix> hidden;   // m times [p, h]
  std::span<const ConstMatrix> dhidden;  // m times [p, h]
  ConstMatrix gated_dy;                  // [p, d]

  size_t matrices() const { return hidden.size() + 1; }
  ConstMatrix left(size_t matrix) const { return matrix == 0 ? x : hidden[matrix - 1]; }
  ConstMatrix right(size_t matrix) const {
    return matrix < dhidden.size() ? dhidden[matrix] : gated_dy;
  }
  int64_t row_parts(size_t matrix) const { return Parts(left(matrix).cols, kTileRows); }
  int64_t col_parts(size_t matrix) const { return Parts(right(matrix).cols, kTileCols); }
  int64_t tiles(size_t matrix) const { return row_parts(matrix) * col_parts(matrix); }
  int64_t tiles() const {
    int64_t sum = 0;
    for (size_t matrix = 0; matrix < matrices(); ++matrix) sum += tiles(matrix);
    return sum;
  }
};

struct Tile {
  Range rows;  // of the weight matrix
  Range cols;
  Matrix gradient;
};

// Calls fn(index of the expert, matrix, number of the tile within the expert, tile) for every tile
// of every expert that has rows; those with most rows first. Tiles are numbered matrix by matrix. A
// tile may come in several slices of rows, in order and on one thread.
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
  const int64_t tiles = of.tiles();
  const int64_t busy =
      std::count_if(rows.begin(), rows.end(), [](int64_t count) { return count > 0; });
  ForEach(context.parallel, busy * tiles, [&](int64_t task) {
    const int32_t i = order[task / tiles];
    const int64_t number = task % tiles;
    int64_t within = number;
    size_t matrix = 0;
    for (; within >= of.tiles(matrix); ++matrix) within -= of.tiles(matrix);
    const ConstMatrix left = of.left(matrix).Rows(begins[i], rows[i]);
    const ConstMatrix right = of.right(matrix).Rows(begins[i], rows[i]);
    const int64_t col_parts = of.col_parts(matrix);
    const Range cols = Part(right.cols, col_parts, within % col_parts);
    const Range all = Part(left.cols, of.row_parts(matrix), within / col_parts);
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
      fn(i, matrix, number, tile);
    }
  });
}

Gradients CheckedGradients(ConstMatrix x, std::span<const ConstMatrix> hidden,
                           std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy) {
  Check(!hidden.empty() && dhidden.size() == hidden.size(),
        "a hidden layer, and its gradient");
  for (size_t i = 0; i < hidden.size(); ++i) {
    Check(hidden[i].rows == x.rows && dhidden[i].rows == x.rows &&
              dhidden[i].cols == hidden[i].cols,
          "hidden and dhidden: [p, h]");
  }
  Check(gated_dy.rows == x.rows && gated_dy.cols == x.cols, "x and gated_dy: [p, d]");
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
                   ConstMatrix x, std::span<const ConstMatrix> hidden,
                   std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy) {
  const Gradients gradients = CheckedGradients(x, hidden, dhidden, gated_dy);
  for (const ExpertUpdate& update : updates) {
    const size_t moments =
        update.step.kind == OptimizerStep::Kind::kAdam ? gradients.matrices() : 0;
    Check(update.expert.w.size() == gradients.matrices() && update.m.size() >= moments &&
              update.v.size() >= moments,
          "a matrix more than hidden layers, and its moments");
  }
  const RowLists lists(context, updates, [](const ExpertUpdate& u) { return u.expert; });
  ForTiles(context, gradients, lists.begin_list(), lists.count_list(),
           [&](int32_t i, size_t matrix, int64_t, const Tile& tile) {
             const ExpertUpdate& update = updates[i];
             const Optimizer optimizer(update.step);
             const bool moments = update.step.kind == OptimizerStep::Kind::kAdam;
             const int64_t stride = gradients.right(matrix).cols;
             for (int64_t r = 0; r < tile.gradient.rows; ++r) {
               const int64_t at = (tile.rows.begin + r) * stride + tile.cols.begin;
               optimizer.Update(tile.gradient.cols, tile.gradient.row(r),
                                update.expert.w[matrix] + at,
                                moments ? update.m[matrix] + at : nullptr,
                                moments ? update.v[matrix] + at : nullptr);
             }
           });
}

void ExpertSquareSums(const Context& context, std::span<const ExpertRows> experts,
                      ConstMatrix x, std::span<const ConstMatrix> hidden,
                      std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy,
                      std::span<double> sums) {
  const Gradients gradients = CheckedGradients(x, hidden, dhidden, gated_dy);
  Check(sums.size() == gradients.matrices() * experts.size(),
        "a sum for each matrix of each expert");
  const RowLists lists(context, experts, [](const ExpertRows& e) { return e; });
  const int64_t tiles = gradients.tiles();
  const Scratch<double> tile_sums(context.scratch, experts.size() * tiles);
  std::fill_n(tile_sums.data(), experts.size() * tiles, 0.0);
  ForTiles(context, gradients, lists.begin_list(), lists.count_list(),
           [&](int32_t i, size_t, int64_t number, const Tile& tile) {
             double& sum = tile_sums[i * tiles + number];
             for (int64_t r = 0; r < tile.gradient.rows; ++r) {
               sum += SquareSumOfBlock(tile.gradient.cols, tile.gradient.row(r));
             }
           });
  const double* tile_sum = tile_sums.data();
  double* sum = sums.data();
  for (size_t i = 0; i < experts.size(); ++i) {
    for (size_t matrix = 0; matrix < gradients.matrices(); ++matrix, ++sum) {
      *sum = 0;
      for (int64_t t = 0; t < gradients.tiles(matrix); ++t) *sum += *tile_sum++;
    }
  }
}

}  // namespace moe::cpu
