// Optimizer updates of many matrices at once.
#pragma once

#include <vector>

#include "common/kernels/cuda/context.h"

namespace moe::cuda {

// A matrix with its gradient and its moments (backend.h), all on the device; either w or w16.
struct MatrixState {
  ConstView gradient;
  float* w = nullptr;
  Bfloat16* w16 = nullptr;
  float* m = nullptr;
  float* v = nullptr;
};

// steps[i] for states[i].
void UpdateMatrices(const Context& context, std::span<const OptimizerStep> steps,
                    std::span<const MatrixState> states);

void OptimizerUpdate(const Context& context, const OptimizerStep& step, ConstMatrix g,
                     float* w, float* m, float* v);
void UpdateRows(const Context& context, const OptimizerStep& step,
                std::span<const int32_t> index, std::span<const int64_t> count,
                ConstMatrix g, Matrix w, Matrix m, Matrix v);

}  // namespace moe::cuda
