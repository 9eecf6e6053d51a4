// What common/kernels/cuda uses of the CUDA runtime, on the host: for tests only, on machines without
// a GPU (docs/design/cuda.md).
//
// "Device" memory is the host's, filled with NaNs when it is allocated and when it is freed. What is
// put on a stream runs as late as waiting for it allows, so that a missing wait is a wrong result. The
// blocks of a kernel run one after the other, a block's threads as fibers that change at barriers and
// shuffles.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
// One block runs at a time, on the thread that waits.
#define __shared__ static thread_local

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct float4 {
  float x, y, z, w;
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNotReady = 600
};
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice
};

struct CudaOnHostStream;
struct CudaOnHostEvent;
using cudaStream_t = CudaOnHostStream*;
using cudaEvent_t = CudaOnHostEvent*;
using cudaMemPool_t = void*;

inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr unsigned cudaHostAllocDefault = 0;
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMemoryPoolsSupported = 115
};

struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
};

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute,
                                    void* value);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetLastError();

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event,
                                unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);

cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream);
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from,
                              size_t from_pitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);

namespace cuda_on_host {

// Appends to the stream.
void Enqueue(cudaStream_t stream, std::function<void()> work);
// Runs all threads of all blocks, now.
void RunGrid(dim3 grid, dim3 block, const std::function<void()>& thread);
// All threads of the block, or of the warp, that still run have come.
void BlockBarrier();
void WarpBarrier();
// Eight bytes for each lane of the calling thread's warp: by turns two places, so that a lane may go on
// to the next exchange while others still read.
uint64_t* WarpSlots();
int Lane();

template <typename T>
T Exchange(T value, int from_lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t* const slots = WarpSlots();
  __builtin_memcpy(slots + Lane(), &value, sizeof(T));
  WarpBarrier();
  T result;
  __builtin_memcpy(&result, slots + from_lane, sizeof(T));
  return result;
}

}  // namespace cuda_on_host

extern thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { cuda_on_host::BlockBarrier(); }
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return cuda_on_host::Exchange(value, cuda_on_host::Lane() ^ mask);
}

template <typename... Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params...), dim3 grid, dim3 block,
                             void** args, size_t, cudaStream_t stream) {
  // Arguments are copied when the kernel is launched, as on a GPU.
  auto values = [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
    return std::tuple<Params...>(*static_cast<Params*>(args[kIndex])...);
  }
  (std::index_sequence_for<Params...>());
  cuda_on_host::Enqueue(stream, [kernel, grid, block, values] {
    cuda_on_host::RunGrid(grid, block, [&] { std::apply(kernel, values); });
  });
  return cudaSuccess;
}
