#include "common/kernels/cpu/matrix_update.h"

#include <algorithm>
#include <cmath>

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/simd.h"

namespace moe::cpu {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements

// For kRows rows: row_sums[r] = the sum of its squares; col_sums += the rows' squares, in order.
template <int kRows>
void AddSquaresOfRows(int64_t n, Vec scale, const float* x, int64_t stride,
                      float* row_sums, float* col_sums) {
  Vec sum[kRows] = {};
  ForLanes(n, [&](auto lanes, int64_t i) {
    Vec column = _mm256_load_ps(col_sums + i);
    for (int r = 0; r < kRows; ++r) {
      const Vec value = _mm256_mul_ps(scale, lanes.Load(x + r * stride + i));
      sum[r] = _mm256_fmadd_ps(value, value, sum[r]);
      column = _mm256_fmadd_ps(value, value, column);
    }
    _mm256_store_ps(col_sums + i, column);
  });
  for (int r = 0; r < kRows; ++r) row_sums[r] = SumLanes(sum[r]);
}

}  // namespace

MatrixUpdate::MatrixUpdate(const Context& context, const OptimizerStep& step,
                           const MatrixState& state)
    : context_(context),
      optimizer_(step),
      state_(state),
      grid_{state.rows, state.cols},
      factored_(step.kind == OptimizerStep::Kind::kAdam &&
                step.second_moment == SecondMoment::kFactored),
      rounding_(step.rounding),
      row_sums_(context.scratch, factored_ ? grid_.col_parts() * state.rows : 0),
      col_sums_(context.scratch, factored_ ? grid_.row_parts() * state.cols : 0),
      col_roots_(context.scratch, factored_ ? state.cols : 0) {
  Check((state.w == nullptr) != (state.w16 == nullptr) || grid_.size() == 0,
        "parameters of one type");
  const bool adam = step.kind == OptimizerStep::Kind::kAdam && grid_.size() > 0;
  Check(!adam || state.v != nullptr, "a second moment");
  Check(!adam || step.adam.beta1 == 0 || state.m != nullptr, "a first moment");
}

void MatrixUpdate::AddSquares(int64_t tile, ConstMatrix gradient) {
  const Range rows = grid_.RowsOf(tile);
  const Range cols = grid_.ColsOf(tile);
  float* row_sums =
      row_sums_.data() + tile % grid_.col_parts() * state_.rows + rows.begin;
  float* col_sums =
      col_sums_.data() + tile / grid_.col_parts() * state_.cols + cols.begin;
  const Vec scale = Splat(optimizer_.gradient_scale());
  alignas(32) float total[TileGrid::kSide] = {};
  int64_t r = 0;
  for (; r + 4 <= rows.size(); r += 4) {
    AddSquaresOfRows<4>(cols.size(), scale, gradient.row(r), gradient.stride,
                        row_sums + r, total);
  }
  for (; r < rows.size(); ++r) {
    AddSquaresOfRows<1>(cols.size(), scale, gradient.row(r), gradient.stride,
                        row_sums + r, total);
  }
  std::copy_n(total, cols.size(), col_sums);
}

void MatrixUpdate::TakeMeans() {
  // New averages of the means over `count` elements from the sums [parts, n].
  const auto average = [&](const Scratch<float>& sums, int64_t parts, int64_t n,
                           int64_t count, float* moment) {
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += sums[part * n + i];
      moment[i] = optimizer_.Average(moment[i], sum / static_cast<double>(count));
    }
  };
  float* const r = state_.v;
  float* const c = state_.v + state_.rows;
  average(row_sums_, grid_.col_parts(), state_.rows, state_.cols, r);
  average(col_sums_, grid_.row_parts(), state_.cols, state_.rows, c);
  double sum = 0;
  for (int64_t i = 0; i < state_.rows; ++i) sum += r[i];
  inverse_mean_ = sum > 0 ? static_cast<double>(state_.rows) / sum : 0;
  for (int64_t i = 0; i < state_.cols; ++i) {
    col_roots_[i] = std::sqrt(c[i]) * optimizer_.root_correction();
  }
}

int64_t MatrixUpdate::row_grain() const {
  return kGrain / std::max<int64_t>(1, state_.cols) + 1;
}

void MatrixUpdate::Apply(Range rows, ConstMatrix gradient) const {
  if (state_.w16 == nullptr) {
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      ApplyRow(r, gradient.row(r - rows.begin), FloatWeights{state_.w + r * state_.cols});
    }
    return;
  }
  const int64_t words = (state_.cols + 1) / 2;
  const Scratch<uint32_t> bits(context_.scratch, words + 3);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    FillBits(rounding_, r, std::span(bits.data(), words));
    ApplyRow(r, gradient.row(r - rows.begin),
             Bfloat16Weights{state_.w16 + r * state_.cols, bits.data()});
  }
}

template <typename Weights>
void MatrixUpdate::ApplyRow(int64_t r, const float* gradient, Weights w) const {
  const int64_t n = state_.cols;
  float* const m = state_.m == nullptr ? nullptr : state_.m + r * n;
  if (optimizer_.elementwise()) {
    float* const v = state_.v == nullptr ? nullptr : state_.v + r * n;
    return optimizer_.Update(n, gradient, w, m, v);
  }
  if (factored_) {
    const double share = state_.v[r] * inverse_mean_;
    const Vec row_root = Splat(static_cast<float>(std::sqrt(share)));
    const Vec epsilon = Splat(optimizer_.epsilon());
    return optimizer_.UpdateAdam(n, gradient, w, m, [&](auto lanes, int64_t i, Vec) {
      return _mm256_fmadd_ps(row_root, lanes.Load(col_roots_.data() + i), epsilon);
    });
  }
  optimizer_.UpdateByMean(n, gradient, w, m, state_.v + r);
}

}  // namespace moe::cpu
