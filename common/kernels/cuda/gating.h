// Noisy top-k gating (eq. 3-5) and the load estimator (eq. 8-10).
#pragma once

#include "common/kernels/cuda/context.h"

namespace moe::cuda {

void NoisyTopKForward(const Context& context, const GateBatch& batch);
void NoisyTopKBackward(const Context& context, const GateBatch& batch, const float* dgate,
                       const float* dload, Matrix dclean, Matrix draw);

}  // namespace moe::cuda
