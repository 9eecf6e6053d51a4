// Weight gradients of experts, tile by tile: a tile is used while it is in the second-level cache
// and becomes part of a whole gradient only where an update takes means.
#include <algorithm>

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/experts.h"
#include "common/kernels/cpu/few_rows.h"
#include "common/kernels/cpu/gemm.h"
#include "common/kernels/cpu/matrix_update.h"
#include "common/kernels/cpu/optimizer.h"
#include "common/kernels/cpu/ranges.h"
#include "common/kernels/cpu/reductions.h"
#include "common/kernels/cpu/thread_pool.h"

namespace moe::cpu {
namespace {

// A tile of few outer products is made and used in slices that fit the first-level cache.
constexpr int64_t kFewOuterRows = 8;
constexpr int64_t kSliceRows = 16;

// The tiles of dW_1 = x^T dhidden_1, dW_i = hidden_(i-1)^T dhidden_i and dW_(m+1) =
// hidden_m^T gated_dy, or without a hidden layer x^T gated_dy; matrices count from 0.
struct Gradients {
  ConstMatrix x;                         // [p, d]
  std::span<const ConstMatrix> hidden;   // m times [p, h]
  std::span<const ConstMatrix> dhidden;  // m times [p, h]
  ConstMatrix gated_dy;                  // [p, o]

  size_t matrices() const { return hidden.size() + 1; }
  ConstMatrix left(size_t matrix) const { return matrix == 0 ? x : hidden[matrix - 1]; }
  ConstMatrix right(size_t matrix) const {
    return matrix < dhidden.size() ? dhidden[matrix] : gated_dy;
  }
  TileGrid grid(size_t matrix) const { return {left(matrix).cols, right(matrix).cols}; }
  int64_t tiles() const {
    int64_t sum = 0;
    for (size_t matrix = 0; matrix < matrices(); ++matrix) sum += grid(matrix).size();
    return sum;
  }
};

// left^T right for a matrix of one expert, p rows.
struct Gradient {
  ConstMatrix left;   // [p, r]
  ConstMatrix right;  // [p, c]

  bool few() const { return left.rows <= kFewOuterRows; }
  void Form(Range rows, Range cols, Matrix out) const {
    if (few()) {
      FewOuterProducts(Cols(left, rows), Cols(right, cols), out);
    } else {
      Sgemm(Transpose::kYes, Transpose::kNo, 1, Cols(left, rows), Cols(right, cols), 0,
            out);
    }
  }
};

struct Tile {
  Range rows;  // of the weight matrix
  Range cols;
  Matrix gradient;
};

// The experts' rows of the batch, those with most of them first.
class RowLists {
 public:
  template <typename Items, typename Get>
  RowLists(const Context& context, const Gradients& of, const Items& items,
           const Get& get)
      : begins_(context.scratch, items.size()),
        counts_(context.scratch, items.size()),
        order_(context.scratch, items.size()) {
    for (size_t i = 0; i < items.size(); ++i) {
      begins_[i] = get(items[i]).begin;
      counts_[i] = get(items[i]).rows;
      order_[i] = static_cast<int32_t>(i);
      Check(begins_[i] >= 0 && counts_[i] >= 0 && begins_[i] + counts_[i] <= of.x.rows,
            "an expert's rows lie in the batch");
      busy_ += counts_[i] > 0;
    }
    std::sort(order_.data(), order_.data() + items.size(),
              [&](int32_t a, int32_t b) { return counts_[a] > counts_[b]; });
  }

  // Experts with rows.
  int64_t busy() const { return busy_; }
  // Index of the expert with the place-th most rows.
  int32_t At(int64_t place) const { return order_[place]; }
  Gradient Of(const Gradients& of, int32_t expert, size_t matrix) const {
    return {of.left(matrix).Rows(begins_[expert], counts_[expert]),
            of.right(matrix).Rows(begins_[expert], counts_[expert])};
  }

 private:
  int64_t busy_ = 0;
  const Scratch<int64_t> begins_;
  const Scratch<int64_t> counts_;
  const Scratch<int32_t> order_;
};

// Calls fn(index of the expert, matrix, number of the tile within the expert, tile) for every tile
// of every expert that has rows; those with most rows first. Tiles are numbered matrix by matrix. A
// tile may come in several slices of rows, in order and on one thread.
template <typename Fn>
void ForTiles(const Context& context, const Gradients& of, const RowLists& lists,
              const Fn& fn) {
  const int64_t tiles = of.tiles();
  ForEach(context.parallel, lists.busy() * tiles, [&](int64_t task) {
    const int32_t i = lists.At(task / tiles);
    const int64_t number = task % tiles;
    int64_t within = number;
    size_t matrix = 0;
    for (; within >= of.grid(matrix).size(); ++matrix) within -= of.grid(matrix).size();
    const Gradient gradient = lists.Of(of, i, matrix);
    const Range all = of.grid(matrix).RowsOf(within);
    const Range cols = of.grid(matrix).ColsOf(within);
    const int64_t step = gradient.few() ? kSliceRows : TileGrid::kSide;
    const Scratch<float> scratch(context.scratch, TileGrid::kSide * TileGrid::kSide);
    for (int64_t begin = all.begin; begin < all.end; begin += step) {
      const Range slice{begin, std::min(begin + step, all.end)};
      const Tile tile{slice, cols, Matrix(scratch.data(), slice.size(), cols.size())};
      gradient.Form(slice, cols, tile.gradient);
      fn(i, matrix, number, tile);
    }
  });
}

Gradients CheckedGradients(ConstMatrix x, std::span<const ConstMatrix> hidden,
                           std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy) {
  Check(dhidden.size() == hidden.size(), "the gradient of each hidden layer");
  for (size_t i = 0; i < hidden.size(); ++i) {
    Check(hidden[i].rows == x.rows && dhidden[i].rows == x.rows &&
              dhidden[i].cols == hidden[i].cols,
          "hidden and dhidden: [p, h]");
  }
  Check(gated_dy.rows == x.rows, "x: [p, d], gated_dy: [p, o]");
  return {x, hidden, dhidden, gated_dy};
}

// The gradient is kept as a whole, but for one of few outer products, which is rather formed twice.
void UpdateMatrix(const Context& context, const OptimizerStep& step,
                  const MatrixState& state, const Gradient& gradient) {
  MatrixUpdate update(context, step, state);
  const TileGrid& grid = update.grid();
  const bool few = gradient.few();
  const Scratch<float> scratch(context.scratch, few ? 0 : state.rows * state.cols);
  const Matrix whole(scratch.data(), state.rows, state.cols);
  if (!few || update.takes_means()) {
    ForEach(context.parallel, grid.size(), [&](int64_t tile) {
      const Range rows = grid.RowsOf(tile);
      const Range cols = grid.ColsOf(tile);
      const Scratch<float> small(context.scratch, few ? rows.size() * cols.size() : 0);
      const Matrix part = few ? Matrix(small.data(), rows.size(), cols.size())
                              : Cols(Rows(whole, rows), cols);
      gradient.Form(rows, cols, part);
      if (update.takes_means()) update.AddSquares(tile, part);
    });
  }
  if (update.takes_means()) update.TakeMeans();
  ForRanges(context.parallel, state.rows, update.row_grain(),
            [&](int64_t begin, int64_t end) {
              const Range rows{begin, end};
              if (!few) return update.Apply(rows, Rows(whole, rows));
              const Scratch<float> small(context.scratch, rows.size() * state.cols);
              const Matrix part(small.data(), rows.size(), state.cols);
              gradient.Form(rows, {0, state.cols}, part);
              update.Apply(rows, part);
            });
}

float* At(std::span<float* const> pointers, size_t i) {
  return pointers.empty() ? nullptr : pointers[i];
}

}  // namespace

void ExpertUpdates(const Context& context, std::span<const ExpertUpdate> updates,
                   ConstMatrix x, std::span<const ConstMatrix> hidden,
                   std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy) {
  const Gradients gradients = CheckedGradients(x, hidden, dhidden, gated_dy);
  const size_t matrices = gradients.matrices();
  bool by_tiles = true;
  for (const ExpertUpdate& update : updates) {
    Check(update.expert.matrices() == matrices && update.steps.size() == matrices,
          "a matrix more than hidden layers, and its update");
    Check((update.m.empty() || update.m.size() == matrices) &&
              (update.v.empty() || update.v.size() == matrices),
          "the moments of each matrix");
    by_tiles = by_tiles && update.expert.w16.empty();
    for (size_t matrix = 0; matrix < matrices; ++matrix) {
      const OptimizerStep& step = update.steps[matrix];
      const bool adam = step.kind == OptimizerStep::Kind::kAdam;
      Check(!adam || At(update.v, matrix) != nullptr, "a second moment");
      Check(!adam || step.adam.beta1 == 0 || At(update.m, matrix) != nullptr,
            "a first moment");
      by_tiles = by_tiles && (!adam || step.second_moment == SecondMoment::kFull);
    }
  }
  const RowLists lists(context, gradients, updates,
                       [](const ExpertUpdate& u) { return u.expert; });
  if (by_tiles) {
    const auto at = [](std::span<float* const> pointers, size_t matrix, int64_t i) {
      float* const moment = At(pointers, matrix);
      return moment == nullptr ? nullptr : moment + i;
    };
    return ForTiles(
        context, gradients, lists,
        [&](int32_t i, size_t matrix, int64_t, const Tile& tile) {
          const ExpertUpdate& update = updates[i];
          const Optimizer optimizer(update.steps[matrix]);
          const int64_t stride = gradients.right(matrix).cols;
          for (int64_t r = 0; r < tile.gradient.rows; ++r) {
            const int64_t from = (tile.rows.begin + r) * stride + tile.cols.begin;
            optimizer.Update(tile.gradient.cols, tile.gradient.row(r),
                             update.expert.w[matrix] + from, at(update.m, matrix, from),
                             at(update.v, matrix, from));
          }
        });
  }
  ForEach(context.parallel, lists.busy() * static_cast<int64_t>(matrices),
          [&](int64_t task) {
            const int32_t i = lists.At(task / static_cast<int64_t>(matrices));
            const size_t matrix = task % matrices;
            const ExpertUpdate& update = updates[i];
            const ExpertRows& expert = update.expert;
            const TileGrid grid = gradients.grid(matrix);
            UpdateMatrix(context, update.steps[matrix],
                         {grid.rows, grid.cols, At(expert.w, matrix),
                          expert.w16.empty() ? nullptr : expert.w16[matrix],
                          At(update.m, matrix), At(update.v, matrix)},
                         lists.Of(gradients, i, matrix));
          });
}

void ExpertSquareSums(const Context& context, std::span<const ExpertRows> experts,
                      ConstMatrix x, std::span<const ConstMatrix> hidden,
                      std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy,
                      std::span<double> sums) {
  const Gradients gradients = CheckedGradients(x, hidden, dhidden, gated_dy);
  Check(sums.size() == gradients.matrices() * experts.size(),
        "a sum for each matrix of each expert");
  const RowLists lists(context, gradients, experts,
                       [](const ExpertRows& e) { return e; });
  const int64_t tiles = gradients.tiles();
  const Scratch<double> tile_sums(context.scratch, experts.size() * tiles);
  std::fill_n(tile_sums.data(), experts.size() * tiles, 0.0);
  ForTiles(context, gradients, lists,
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
      for (int64_t t = 0; t < gradients.grid(matrix).size(); ++t) *sum += *tile_sum++;
    }
  }
}

}  // namespace moe::cpu
