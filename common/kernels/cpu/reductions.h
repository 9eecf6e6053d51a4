// Sums and tests over matrices and vectors, and the plain sums of two.
#pragma once

#include "common/kernels/cpu/context.h"

namespace moe::cpu {

void BroadcastRow(const Context& context, const float* row, Matrix out);
void AddColumnSums(const Context& context, ConstMatrix x, float* sums);
void Add(const Context& context, int64_t n, const float* x, float* y);
double SquareSum(const Context& context, int64_t n, const float* x);
bool AllFinite(const Context& context, ConstMatrix x);

// The sum of squares of at most some thousand numbers on this thread, in double.
double SquareSumOfBlock(int64_t n, const float* x);
// Of any number, in blocks whose sums are added in order.
double SquareSumOfRow(int64_t n, const float* x);

}  // namespace moe::cpu
