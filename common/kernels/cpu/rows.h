// Rows moved and summed by index.
#pragma once

#include <span>

#include "common/kernels/cpu/context.h"

namespace moe::cpu {

void GatherRows(const Context& context, ConstMatrix x, std::span<const int32_t> index,
                const float* scale, Matrix out);
void ScatterAddRows(const Context& context, ConstMatrix x, std::span<const int32_t> index,
                    Matrix out);
void CombineRows(const Context& context, ConstMatrix x, std::span<const int32_t> offset,
                 std::span<const int32_t> position, const float* weight, Matrix out);

}  // namespace moe::cpu
