// Sums and maxima over the threads of a block, in an order that depends on the block's size alone. All
// threads of the block call them together, and all get the result.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace moe::cuda {

template <typename T>
struct SumOf {
  __device__ T operator()(T a, T b) const { return a + b; }
};

// NaN stays.
struct MaxOf {
  __device__ float operator()(float a, float b) const { return a >= b || a != a ? a : b; }
};

template <typename T, typename Join>
__device__ T BlockReduce(T x, Join join) {
  __shared__ T of_warp[32];
  for (int distance = 16; distance > 0; distance /= 2) {
    x = join(x, __shfl_xor_sync(0xFFFFFFFFu, x, distance));
  }
  // Somebody may still read what the last call left.
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  T result = of_warp[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) {
    result = join(result, of_warp[warp]);
  }
  return result;
}

template <typename T>
__device__ T BlockSum(T x) {
  return BlockReduce(x, SumOf<T>());
}

__device__ inline float BlockMax(float x) { return BlockReduce(x, MaxOf()); }

}  // namespace moe::cuda
