// The experts' products, forward, backward and update, for many experts in one call.
#pragma once

#include "common/kernels/cuda/context.h"

namespace moe::cuda {

void ExpertForward(const Context& context, std::span<const ExpertRows> experts,
                   ConstMatrix x, std::span<const Matrix> hidden, Matrix y);
void ExpertBackward(const Context& context, std::span<const ExpertRows> experts,
                    ConstMatrix x, ConstMatrix dy, const float* gate,
                    std::span<const ConstMatrix> hidden, float* dgate,
                    std::span<const Matrix> dhidden, Matrix dx);
void ExpertUpdates(const Context& context, std::span<const ExpertUpdate> updates,
                   ConstMatrix x, std::span<const ConstMatrix> hidden,
                   std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy);
void ExpertSquareSums(const Context& context, std::span<const ExpertRows> experts,
                      ConstMatrix x, std::span<const ConstMatrix> hidden,
                      std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy,
                      std::span<double> sums);

}  // namespace moe::cuda
