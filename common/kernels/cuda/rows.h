// Rows taken from, added to and combined into matrices.
#pragma once

#include "common/kernels/cuda/context.h"

namespace moe::cuda {

void GatherRows(const Context& context, ConstMatrix x, std::span<const int32_t> index,
                const float* scale, Matrix out);
void ScatterAddRows(const Context& context, ConstMatrix x, std::span<const int32_t> index,
                    Matrix out);
void CombineRows(const Context& context, ConstMatrix x, std::span<const int32_t> offset,
                 std::span<const int32_t> position, const float* weight, Matrix out);

}  // namespace moe::cuda
