// Sums over vectors and over the rows of matrices.
#pragma once

#include "common/kernels/cuda/context.h"

namespace moe::cuda {

void BroadcastRow(const Context& context, const float* row, Matrix out);
void AddColumnSums(const Context& context, ConstMatrix x, float* sums);
void Add(const Context& context, int64_t n, const float* x, float* y);
double SquareSum(const Context& context, int64_t n, const float* x);
bool AllFinite(const Context& context, ConstMatrix x);

// Of the experts' square sums, too: sums over so many numbers, added in order.
inline constexpr int64_t kSquareBlock = 4096;

}  // namespace moe::cuda
