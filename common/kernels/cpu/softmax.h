// Softmax cross-entropy.
#pragma once

#include <span>

#include "common/kernels/cpu/context.h"

namespace moe::cpu {

double SoftmaxCrossEntropy(const Context& context, Matrix logits,
                           std::span<const int32_t> target, float gradient_scale);

void LogSumExp(const Context& context, ConstMatrix x, float* largest, double* sum);
void LogSoftmax(const Context& context, Matrix x);

}  // namespace moe::cpu
