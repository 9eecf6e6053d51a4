// Strictly balanced gating: which tokens an expert takes (eq. 18 and 19).
#pragma once

#include "common/kernels/cpu/context.h"

namespace moe::cpu {

void ChooseLargest(const Context& context, ConstMatrix x, int64_t m, RandomKey key,
                   uint8_t* chosen);
void ChooseAbove(const Context& context, ConstMatrix x, const float* threshold,
                 std::span<const int32_t> target, uint8_t* chosen);
void CountAbove(const Context& context, ConstMatrix x, const float* threshold,
                int32_t* count);

}  // namespace moe::cpu
