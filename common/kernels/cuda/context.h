// What every operation may use, and the one way in which kernels are started.
#pragma once

#include <cstdint>
#include <span>
#include <tuple>

#include "common/kernels/backend.h"
#include "common/kernels/cuda/check.h"
#include "common/kernels/cuda/memory.h"
#include "common/kernels/cuda/view.h"

namespace moe::cuda {

class ExpertCache;

// One thread at a time. Work goes to `stream`, in order; memory that an operation gives back is used
// again by later work of that stream only, so that nothing waits for it.
struct Context {
  cudaStream_t stream = nullptr;
  cublasHandle_t blas = nullptr;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  DeviceMemory* memory = nullptr;
  UploadRing* uploads = nullptr;
  Downloads* downloads = nullptr;
  ExpertCache* experts = nullptr;
};

// Memory of the device while an operation is put on the stream. Not initialized.
template <typename T>
class Scratch {
 public:
  Scratch(const Context& context, int64_t count)
      : stream_(context.stream),
        data_(count > 0
                  ? static_cast<T*>(AllocateOnStream(count * sizeof(T), context.stream))
                  : nullptr) {}
  ~Scratch() {
    if (data_ != nullptr) CheckOk(cudaFreeAsync(data_, stream_));
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* data() const { return data_; }

 private:
  const cudaStream_t stream_;
  T* const data_;
};

// A copy of the host's values for an operation.
template <typename T>
class OnDevice {
 public:
  OnDevice(const Context& context, std::span<const T> values)
      : scratch_(context, static_cast<int64_t>(values.size())) {
    context.uploads->Upload(values.data(), scratch_.data(), values.size_bytes());
  }

  const T* data() const { return scratch_.data(); }

 private:
  const Scratch<T> scratch_;
};

inline constexpr unsigned kWarp = 32;

// Threads for n independent elements of a row: whole warps, at most 256.
inline unsigned ThreadsFor(int64_t n) {
  return n >= 256 ? 256 : static_cast<unsigned>((n + kWarp - 1) / kWarp * kWarp);
}

inline unsigned BlocksFor(int64_t n, int64_t per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

// kernel<<<grid, threads>>>(args...) on the context's stream; nothing for an empty grid.
template <typename... Params, typename... Args>
void Launch(const Context& context, void (*kernel)(Params...), dim3 grid,
            unsigned threads, const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || threads == 0) return;
  Check(grid.y <= 65535, "a grid that CUDA has");
  std::tuple<Params...> params(static_cast<Params>(args)...);
  std::apply(
      [&](Params&... param) {
        void* pointers[] = {&param...};
        CheckOk(cudaLaunchKernel(kernel, grid, dim3(threads), pointers, size_t{0},
                                 context.stream));
      },
      params);
}

}  // namespace moe::cuda
