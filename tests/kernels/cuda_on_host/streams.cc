// Streams that put off their work until somebody waits for it, and memory that
// nobody else may touch.
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <vector>

#include "cuda_runtime.h"

struct CudaOnHostStream {
  std::deque<std::function<void()>> work;
  int64_t appended = 0;
  int64_t done = 0;
};

struct CudaOnHostEvent {
  cudaStream_t stream = nullptr;  // null: never recorded
  int64_t position = 0;
};

namespace {

std::recursive_mutex mutex;  // of all streams and events

#if defined(__SANITIZE_ADDRESS__)

// The sanitizer finds what lies outside of a block.
class Arena {
 public:
  char *Take(size_t bytes) {
    void *block = nullptr;
    return posix_memalign(&block, 256, bytes) == 0 ? static_cast<char *>(block) : nullptr;
  }
  void Return(char *block, size_t) { std::free(block); }
  void Open() {}
  void Close() {}
};

#else

// The device's memory: the host's can be read and written at all times, this
// only by a stream's work.
class Arena {
 public:
  char *Take(size_t bytes) {
    const size_t size = std::bit_ceil(std::max(bytes, kSmallest));
    std::vector<char *> &free = free_[size];
    if (!free.empty()) {
      char *const block = free.back();
      free.pop_back();
      return block;
    }
    if (base_ == nullptr) {
      base_ =
          static_cast<char *>(mmap(nullptr, kReserved, PROT_NONE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      if (base_ == MAP_FAILED) std::abort();
    }
    const size_t end = used_ + (size + kPage - 1) / kPage * kPage;
    if (end > kReserved) return nullptr;
    char *const begin = base_ + used_;
    used_ = end;
    if (depth_ > 0) Protect(begin, end - (begin - base_), PROT_READ | PROT_WRITE);
    // What is left of the page serves others of this size.
    for (size_t at = size; at + size <= end - (begin - base_); at += size) {
      free.push_back(begin + at);
    }
    return begin;
  }
  void Return(char *block, size_t bytes) {
    free_[std::bit_ceil(std::max(bytes, kSmallest))].push_back(block);
  }

  // In pairs; between them it can be touched.
  void Open() {
    if (depth_++ == 0 && used_ > 0) Protect(base_, used_, PROT_READ | PROT_WRITE);
  }
  void Close() {
    if (--depth_ == 0 && used_ > 0) Protect(base_, used_, PROT_NONE);
  }

 private:
  static constexpr size_t kReserved = size_t{64} << 30;
  static constexpr size_t kPage = 4096;
  static constexpr size_t kSmallest = 256;  // and as a GPU aligns it

  static void Protect(char *begin, size_t bytes, int how) {
    if (mprotect(begin, bytes, how) != 0) std::abort();
  }

  char *base_ = nullptr;
  size_t used_ = 0;
  int depth_ = 0;
  std::map<size_t, std::vector<char *>> free_;
};

#endif

// Under the mutex.
Arena arena;
std::map<void *, size_t> allocated;

// The stream's first `position` pieces of work.
void RunUntil(cudaStream_t stream, int64_t position) {
  if (stream->done >= position) return;
  arena.Open();
  while (stream->done < position) {
    const std::function<void()> next = std::move(stream->work.front());
    stream->work.pop_front();
    ++stream->done;
    next();
  }
  arena.Close();
}

// NaNs, and absurd integers.
void Spoil(void *memory, size_t bytes) { std::memset(memory, 0xFF, bytes); }

}  // namespace

namespace cuda_on_host {

void Enqueue(cudaStream_t stream, std::function<void()> work) {
  const std::lock_guard lock(mutex);
  stream->work.push_back(std::move(work));
  ++stream->appended;
}

}  // namespace cuda_on_host

using cuda_on_host::Enqueue;

const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "an error";
}
cudaError_t cudaGetDeviceCount(int *count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
  *properties = {"host (no GPU)", 8, 0, 1};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8
           : attribute == cudaDevAttrMemoryPoolsSupported ? 1
                                                          : 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int) {
  *pool = nullptr;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) {
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  *free = *total = size_t{1} << 30;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = 0;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
  *stream = new CudaOnHostStream;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  RunUntil(stream, stream->appended);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  RunUntil(stream, stream->appended);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard lock(mutex);
  if (event->stream == nullptr) return cudaSuccess;
  Enqueue(stream, [of = event->stream, until = event->position] { RunUntil(of, until); });
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
  *event = new CudaOnHostEvent;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  *event = {stream, stream->appended};
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard lock(mutex);
  if (event->stream != nullptr) RunUntil(event->stream, event->position);
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **memory, size_t bytes, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  char *const block = arena.Take(bytes);
  *memory = block;
  if (block == nullptr) return cudaErrorMemoryAllocation;
  allocated[block] = bytes;
  // cuBLAS's workspace, which isn't used, would take most of the time.
  constexpr size_t kMost = size_t{16} << 20;
  Enqueue(stream, [=] { Spoil(block, std::min(bytes, kMost)); });
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream) {
  Enqueue(stream, [memory] {
    const size_t bytes = allocated.at(memory);
    allocated.erase(memory);
    Spoil(memory, std::min(bytes, size_t{16} << 20));
    arena.Return(static_cast<char *>(memory), bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned) {
  *memory = std::malloc(bytes);
  return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void *memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  Enqueue(stream, [=] { std::memmove(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from,
                              size_t from_pitch, size_t width, size_t height,
                              cudaMemcpyKind, cudaStream_t stream) {
  Enqueue(stream, [=] {
    for (size_t r = 0; r < height; ++r) {
      std::memcpy(static_cast<char *>(to) + r * to_pitch,
                  static_cast<const char *>(from) + r * from_pitch, width);
    }
  });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
  Enqueue(stream, [=] { std::memset(memory, value, bytes); });
  return cudaSuccess;
}
