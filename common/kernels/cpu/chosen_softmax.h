// The softmax over the chosen experts of each token, of which there may be any number.
#pragma once

#include "common/kernels/cpu/context.h"

namespace moe::cpu {

int64_t CountChosen(int64_t tokens, int64_t n, const uint8_t* chosen, int32_t* offset);
void ChosenSoftmaxForward(const Context& context, ConstMatrix x, const uint8_t* chosen,
                          const int32_t* offset, int32_t* expert, float* gate);
void ChosenSoftmaxBackward(const Context& context, const int32_t* offset,
                           const int32_t* expert, const float* gate, const float* dgate,
                           Matrix dx);

}  // namespace moe::cpu
