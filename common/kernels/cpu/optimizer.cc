#include "common/kernels/cpu/optimizer.h"

#include <cmath>

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/matrix_update.h"
#include "common/kernels/cpu/thread_pool.h"

namespace moe::cpu {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements

}  // namespace

Optimizer::Optimizer(const OptimizerStep& step)
    : adam_(step.kind == OptimizerStep::Kind::kAdam),
      elementwise_(!adam_ || step.second_moment == SecondMoment::kFull),
      gradient_scale_(step.gradient_scale),
      rate_(step.adam.rate),
      beta1_(step.adam.beta1),
      beta2_(step.adam.beta2),
      epsilon_(step.adam.epsilon) {
  const double count = static_cast<double>(step.adam.count);
  Check(!adam_ || count >= 1, "updates count from 1");
  corrected_rate_ =
      static_cast<float>(rate_ / (1 - std::pow(static_cast<double>(beta1_), count)));
  root_correction_ =
      static_cast<float>(1 / std::sqrt(1 - std::pow(static_cast<double>(beta2_), count)));
}

float Optimizer::Average(float before, double square) const {
  return std::fma(beta2_, before, (1 - beta2_) * static_cast<float>(square));
}

void OptimizerUpdate(const Context& context, const OptimizerStep& step, ConstMatrix g,
                     float* w, float* m, float* v) {
  Check(g.contiguous(), "a gradient without gaps");
  const Optimizer optimizer(step);
  if (optimizer.elementwise()) {
    const auto at = [](float* moment, int64_t i) {
      return moment == nullptr ? nullptr : moment + i;
    };
    ForRanges(context.parallel, g.size(), kGrain, [&](int64_t begin, int64_t end) {
      optimizer.Update(end - begin, g.data + begin, w + begin, at(m, begin),
                       at(v, begin));
    });
    return;
  }
  MatrixUpdate update(context, step, {g.rows, g.cols, w, nullptr, m, v});
  if (update.takes_means()) {
    const TileGrid grid = update.grid();
    ForEach(context.parallel, grid.size(), [&](int64_t tile) {
      update.AddSquares(tile, Cols(Rows(g, grid.RowsOf(tile)), grid.ColsOf(tile)));
    });
    update.TakeMeans();
  }
  ForRanges(context.parallel, g.rows, update.row_grain(),
            [&](int64_t begin, int64_t end) {
              update.Apply({begin, end}, g.Rows(begin, end - begin));
            });
}

void UpdateRows(const Context& context, const OptimizerStep& step,
                std::span<const int32_t> index, std::span<const int64_t> count,
                ConstMatrix g, Matrix w, Matrix m, Matrix v) {
  Check(static_cast<int64_t>(index.size()) == g.rows && count.size() == index.size(),
        "an index and a count for each row");
  Check(g.cols == w.cols, "equal columns");
  Check(step.second_moment != SecondMoment::kFactored, "no factored moment of a row");
  for (size_t i = 0; i < index.size(); ++i) {
    Check(index[i] >= 0 && index[i] < w.rows, "0 <= index < rows");
    Check(i == 0 || index[i - 1] < index[i], "ascending indices");
  }
  const auto row = [](const Matrix& moment, int64_t r) {
    return moment.data == nullptr ? nullptr : moment.row(r);
  };
  ForRanges(context.parallel, g.rows, kGrain / (g.cols + 1) + 1,
            [&](int64_t begin, int64_t end) {
              OptimizerStep of_row = step;
              for (int64_t i = begin; i < end; ++i) {
                of_row.adam.count = count[i];
                const Optimizer optimizer(of_row);
                const int64_t r = index[i];
                if (optimizer.elementwise()) {
                  optimizer.Update(g.cols, g.row(i), w.row(r), row(m, r), row(v, r));
                } else {
                  optimizer.UpdateByMean(g.cols, g.row(i), FloatWeights{w.row(r)},
                                         row(m, r), row(v, r));
                }
              }
            });
}

}  // namespace moe::cpu
