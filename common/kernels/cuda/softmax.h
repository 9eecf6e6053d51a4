// The softmax and its cross-entropy, over all classes and over sampled ones.
#pragma once

#include "common/kernels/cuda/context.h"

namespace moe::cuda {

double SoftmaxCrossEntropy(const Context& context, Matrix logits,
                           std::span<const int32_t> target, float gradient_scale);
void LogSumExp(const Context& context, ConstMatrix x, float* largest, double* sum);
void LogSoftmax(const Context& context, Matrix x);
void TargetLogits(const Context& context, ConstMatrix x, ConstMatrix w, const float* bias,
                  std::span<const int32_t> index, std::span<const int32_t> hit,
                  Matrix logits);
void TargetLogitsBackward(const Context& context, ConstMatrix dlogits, ConstMatrix x,
                          ConstMatrix w, std::span<const int32_t> index, Matrix dw,
                          float* dbias, Matrix dx);

}  // namespace moe::cuda
