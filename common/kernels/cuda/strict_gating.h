// Gates under which a token has any number of experts.
#pragma once

#include "common/kernels/cuda/context.h"

namespace moe::cuda {

void ChooseLargest(const Context& context, ConstMatrix x, int64_t m, RandomKey key,
                   uint8_t* chosen);
void ChooseAbove(const Context& context, ConstMatrix x, const float* threshold,
                 std::span<const int32_t> target, uint8_t* chosen);
void CountAbove(const Context& context, ConstMatrix x, const float* threshold,
                int32_t* count);
int64_t CountChosen(const Context& context, int64_t tokens, int64_t n,
                    const uint8_t* chosen, int32_t* offset);
void ChosenSoftmaxForward(const Context& context, ConstMatrix x, const uint8_t* chosen,
                          const int32_t* offset, int32_t* expert, float* gate);
void ChosenSoftmaxBackward(const Context& context, const int32_t* offset,
                           const int32_t* expert, const float* gate, const float* dgate,
                           Matrix dx);

}  // namespace moe::cuda
