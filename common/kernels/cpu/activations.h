// Sigmoid and dropout.
#pragma once

#include "common/kernels/cpu/context.h"

namespace moe::cpu {

void SigmoidForward(const Context& context, ConstMatrix x, Matrix y);
void SigmoidBackward(const Context& context, ConstMatrix y, ConstMatrix dy, Matrix dx);
void DropoutForward(const Context& context, RandomKey key, float rate, ConstMatrix x,
                    ConstMatrix residual, Matrix y);
void DropoutBackward(const Context& context, RandomKey key, float rate, ConstMatrix dy,
                     Matrix dx);

}  // namespace moe::cpu
