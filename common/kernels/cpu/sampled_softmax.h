// The targets' part of a sampled softmax; the candidates' is products of matrices.
#pragma once

#include <span>

#include "common/kernels/cpu/context.h"

namespace moe::cpu {

void TargetLogits(const Context& context, ConstMatrix x, ConstMatrix w, const float* bias,
                  std::span<const int32_t> index, std::span<const int32_t> hit,
                  Matrix logits);
void TargetLogitsBackward(const Context& context, ConstMatrix dlogits, ConstMatrix x,
                          ConstMatrix w, std::span<const int32_t> index, Matrix dw,
                          float* dbias, Matrix dx);

}  // namespace moe::cpu
