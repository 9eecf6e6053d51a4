// Weight gradients of experts, part by part: a part is used while it is in the second-level cache
// and becomes part of a whole gradient only where an update takes means.
#include <algorithm>

#include "common/kernels/arguments.h"
#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/experts.h"
#include "common/kernels/cpu/few_rows.h"
#include "common/kernels/cpu/matrix_update.h"
#include "common/kernels/cpu/optimizer.h"
#include "common/kernels/cpu/ranges.h"
#include "common/kernels/cpu/reductions.h"
#include "common/kernels/cpu/thread_pool.h"

namespace moe::cpu {
namespace {

// So few outer products are rather formed twice than kept.
constexpr int64_t kFormedTwice = 8;
// Rows of weights whose gradient is formed and used at once, by a task of so many.
constexpr int64_t kTaskRows = 64;
constexpr int64_t kSlice = 1 << 13;       // elements, for few outer products
constexpr int64_t kLargeSlice = 1 << 15;  // for more

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

  bool few() const { return left.rows <= kFormedTwice; }
  void Form(Range rows, Range cols, Matrix out, const NeededNext& next = {}) const {
    OuterProducts(Cols(left, rows), Cols(right, cols), out, next);
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
// of every expert that has rows; those with most rows first. Tiles are numbered matrix by matrix.
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
    const Range rows = of.grid(matrix).RowsOf(within);
    const Range cols = of.grid(matrix).ColsOf(within);
    const Scratch<float> scratch(context.scratch, TileGrid::kSide * TileGrid::kSide);
    const Tile tile{rows, cols, Matrix(scratch.data(), rows.size(), cols.size())};
    gradient.Form(rows, cols, tile.gradient);
    fn(i, matrix, number, tile);
  });
}

float* At(std::span<float* const> pointers, size_t i) {
  return pointers.empty() ? nullptr : pointers[i];
}

// Forms the gradient of some rows of weights, slice by slice, and applies it: the parameters and
// moments come and go in one stream each.
void UpdateRowsOf(const Context& context, const ExpertUpdate& update, size_t matrix,
                  const Gradient& gradient, Range rows) {
  const Optimizer optimizer(update.steps[matrix]);
  const int64_t cols = gradient.right.cols;
  float* const arrays[] = {update.expert.w[matrix], At(update.m, matrix),
                           At(update.v, matrix)};
  const auto at = [&](int array, int64_t row) {
    return arrays[array] == nullptr ? nullptr : arrays[array] + row * cols;
  };
  const int64_t elements = gradient.left.rows <= 32 ? kSlice : kLargeSlice;
  const int64_t step =
      std::clamp<int64_t>(elements / std::max<int64_t>(1, cols) / 8 * 8, 8, kTaskRows);
  const Scratch<float> scratch(context.scratch, step * cols);
  for (int64_t begin = rows.begin; begin < rows.end; begin += step) {
    const Range slice{begin, std::min(begin + step, rows.end)};
    const Matrix formed(scratch.data(), slice.size(), cols);
    const NeededNext next{{at(0, begin), at(1, begin), at(2, begin)},
                          formed.size() * int64_t{sizeof(float)}};
    gradient.Form(slice, {0, cols}, formed, next);
    optimizer.Update(formed.size(), formed.data, at(0, begin), at(1, begin),
                     at(2, begin));
  }
}

Gradients CheckedGradients(ConstMatrix x, std::span<const ConstMatrix> hidden,
                           std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy) {
  CheckExpertGradients(x, hidden, dhidden, gated_dy);
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

}  // namespace

void ExpertUpdates(const Context& context, std::span<const ExpertUpdate> updates,
                   ConstMatrix x, std::span<const ConstMatrix> hidden,
                   std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy) {
  const Gradients gradients = CheckedGradients(x, hidden, dhidden, gated_dy);
  const size_t matrices = gradients.matrices();
  bool elementwise = true;
  for (const ExpertUpdate& update : updates) {
    Check(update.expert.matrices() == matrices && update.steps.size() == matrices,
          "a matrix more than hidden layers, and its update");
    Check((update.m.empty() || update.m.size() == matrices) &&
              (update.v.empty() || update.v.size() == matrices),
          "the moments of each matrix");
    elementwise = elementwise && update.expert.w16.empty();
    for (size_t matrix = 0; matrix < matrices; ++matrix) {
      const OptimizerStep& step = update.steps[matrix];
      const bool adam = step.kind == OptimizerStep::Kind::kAdam;
      Check(!adam || At(update.v, matrix) != nullptr, "a second moment");
      Check(!adam || step.adam.beta1 == 0 || At(update.m, matrix) != nullptr,
            "a first moment");
      elementwise = elementwise && (!adam || step.second_moment == SecondMoment::kFull);
    }
  }
  const RowLists lists(context, gradients, updates,
                       [](const ExpertUpdate& u) { return u.expert; });
  if (elementwise) {
    const auto parts = [&](size_t matrix) {
      return (gradients.left(matrix).cols + kTaskRows - 1) / kTaskRows;
    };
    int64_t tasks = 0;  // of an expert
    for (size_t matrix = 0; matrix < matrices; ++matrix) tasks += parts(matrix);
    return ForEach(context.parallel, lists.busy() * tasks, [&](int64_t task) {
      const int32_t i = lists.At(task / tasks);
      int64_t part = task % tasks;
      size_t matrix = 0;
      for (; part >= parts(matrix); ++matrix) part -= parts(matrix);
      UpdateRowsOf(context, updates[i], matrix, lists.Of(gradients, i, matrix),
                   Part(gradients.left(matrix).cols, parts(matrix), part));
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
