// Noisy top-k gating (eq. 3-5) and the load estimator (eq. 8-10).
#pragma once

#include "common/kernels/cpu/context.h"

namespace moe::cpu {

void NoisyTopKForward(const Context& context, const GateBatch& batch);
void NoisyTopKBackward(const Context& context, const GateBatch& batch, const float* dgate,
                       const float* dload, Matrix dclean, Matrix draw);

// NoisyTopKForward with the draws that already stand in batch.noise.
void TopKForwardWithNoise(const Context& context, const GateBatch& batch);

}  // namespace moe::cpu
