// What must hold of the arguments of operations (backend.h), whichever backend carries them out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/kernels/backend.h"
#include "common/kernels/cpu/check.h"

namespace moe {

inline void CheckExpertRows(const ExpertRows& expert, ConstMatrix batch) {
  cpu::Check(
      expert.begin >= 0 && expert.rows >= 0 && expert.begin + expert.rows <= batch.rows,
      "an expert's rows lie in the batch");
}

inline void CheckExpertForward(ConstMatrix x, std::span<const Matrix> hidden, Matrix y) {
  for (const Matrix& layer : hidden) cpu::Check(layer.rows == x.rows, "hidden: [p, h]");
  cpu::Check(y.data == nullptr || y.rows == x.rows, "x: [p, d], y: [p, o]");
}

// Hidden: Matrix or ConstMatrix.
template <typename Hidden>
void CheckHiddenGradients(int64_t rows, std::span<const ConstMatrix> hidden,
                          std::span<const Hidden> dhidden) {
  cpu::Check(dhidden.size() == hidden.size(), "the gradient of each hidden layer");
  for (size_t i = 0; i < hidden.size(); ++i) {
    cpu::Check(hidden[i].rows == rows && dhidden[i].rows == rows &&
                   dhidden[i].cols == hidden[i].cols,
               "hidden and dhidden: [p, h]");
  }
}

inline void CheckExpertBackward(ConstMatrix x, ConstMatrix dy,
                                std::span<const ConstMatrix> hidden,
                                std::span<const Matrix> dhidden, Matrix dx) {
  CheckHiddenGradients(dy.rows, hidden, dhidden);
  cpu::Check(!hidden.empty() || (x.rows == dy.rows && x.cols == dx.cols),
             "x: [p, d], without a hidden layer");
  cpu::Check(dx.data == nullptr || dx.rows == dy.rows, "dy: [p, o], dx: [p, d]");
}

inline void CheckExpertGradients(ConstMatrix x, std::span<const ConstMatrix> hidden,
                                 std::span<const ConstMatrix> dhidden,
                                 ConstMatrix gated_dy) {
  CheckHiddenGradients(x.rows, hidden, dhidden);
  cpu::Check(gated_dy.rows == x.rows, "x: [p, d], gated_dy: [p, o]");
}

// Whether load is a sum of probabilities (eq. 8-10) rather than a count.
inline bool SmoothLoad(const GateBatch& batch) {
  return batch.with_noise && batch.k < batch.clean.cols;
}

inline void CheckGateBatch(const GateBatch& batch) {
  const ConstMatrix clean = batch.clean;
  const auto same_shape = [&](ConstMatrix x) {
    return x.rows == clean.rows && x.cols == clean.cols;
  };
  cpu::Check(batch.k >= 1 && batch.k <= clean.cols, "1 <= k <= n");
  if (!batch.with_noise) return;
  cpu::Check(same_shape(batch.raw), "raw is [T, n]");
  cpu::Check(same_shape(batch.noise), "noise is [T, n]");
  cpu::Check(
      batch.draw_row.empty() || static_cast<int64_t>(batch.draw_row.size()) == clean.rows,
      "draw_row is [T]");
}

inline void CheckGateGradients(const GateBatch& batch, ConstMatrix dclean,
                               ConstMatrix draw) {
  const auto same_shape = [&](ConstMatrix x) {
    return x.rows == batch.clean.rows && x.cols == batch.clean.cols;
  };
  cpu::Check(same_shape(dclean) && (!batch.with_noise || same_shape(draw)),
             "[T, n] gradients");
}

// Of TargetLogits and TargetLogitsBackward.
inline void CheckTargets(ConstMatrix x, ConstMatrix w, ConstMatrix logits,
                         std::span<const int32_t> index) {
  cpu::Check(static_cast<int64_t>(index.size()) == x.rows, "an index for each row");
  cpu::Check(x.cols == w.cols, "equal columns");
  cpu::Check(logits.rows == x.rows && logits.cols >= 1,
             "logits: rows of x, and the target's column");
  for (int32_t i : index) cpu::Check(i >= -1 && i < w.rows, "-1 <= index < rows");
}

}  // namespace moe
