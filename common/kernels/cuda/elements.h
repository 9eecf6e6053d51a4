// Kernels that work on each element of a matrix by itself.
#pragma once

#include "common/kernels/cuda/context.h"

namespace moe::cuda {

// Body: a struct with `__device__ void operator()(int64_t row, int64_t column) const`.
template <typename Body>
__global__ void ForEachElementKernel(int64_t cols, Body body) {
  const int64_t row = blockIdx.x;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (column < cols) body(row, column);
}

template <typename Body>
void ForEachElement(const Context& context, int64_t rows, int64_t cols,
                    const Body& body) {
  if (rows == 0 || cols == 0) return;
  Check(rows <= INT32_MAX, "rows fit in 32 bits");
  const unsigned threads = ThreadsFor(cols);
  Launch(context, ForEachElementKernel<Body>,
         dim3(static_cast<unsigned>(rows), BlocksFor(cols, threads)), threads, cols,
         body);
}

// Body: a struct with `__device__ void operator()(int64_t i) const`.
template <typename Body>
__global__ void ForEachKernel(int64_t n, Body body) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) body(i);
}

template <typename Body>
void ForEach(const Context& context, int64_t n, const Body& body) {
  if (n == 0) return;
  const unsigned threads = ThreadsFor(n);
  Check(n <= int64_t{INT32_MAX} * threads, "a grid that CUDA has");
  Launch(context, ForEachKernel<Body>, dim3(BlocksFor(n, threads)), threads, n, body);
}

}  // namespace moe::cuda
