// Memory of the device, and the ways between it and the host's.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <span>
#include <vector>

#include "common/kernels/cuda/check.h"

namespace moe::cuda {

// What callers allocate. Thread-safe. Memory is taken and given back in the order of the stream, from
// a pool that the driver keeps, so that steady state costs no call to the system.
class DeviceMemory {
 public:
  // stream: outlives the object.
  explicit DeviceMemory(cudaStream_t stream) : stream_(stream) {}

  // Ends the process, with the figures, when memory runs out.
  void* Allocate(size_t bytes);
  void Free(void* memory);
  // Whether the address lies within memory that is allocated here; if not, it is the host's.
  bool Has(const void* address) const;

 private:
  const cudaStream_t stream_;
  mutable std::mutex mutex_;
  std::map<const char*, size_t> blocks_;
};

// As cudaMallocAsync, but ends the process when there is no memory.
void* AllocateOnStream(size_t bytes, cudaStream_t stream);

// The host's memory to the device's by way of pinned memory, in the order of one stream: the source may
// change as soon as Upload returns. Not thread-safe.
class UploadRing {
 public:
  // stream: outlives the object.
  UploadRing(cudaStream_t stream, size_t segment_bytes);
  ~UploadRing();
  UploadRing(const UploadRing&) = delete;
  UploadRing& operator=(const UploadRing&) = delete;

  void Upload(const void* host, void* device, size_t bytes);

 private:
  static constexpr int kSegments = 4;

  // Waits until the copies from the next segment, a lap ago, are done.
  void NextSegment();

  const cudaStream_t stream_;
  const size_t segment_bytes_;
  char* memory_ = nullptr;
  cudaEvent_t copied_[kSegments];
  int segment_ = 0;
  size_t used_ = 0;
};

// The device's memory to the host's by way of pinned memory. Thread-safe.
class Downloads {
 public:
  explicit Downloads(cudaStream_t stream) : stream_(stream) {}
  ~Downloads();
  Downloads(const Downloads&) = delete;
  Downloads& operator=(const Downloads&) = delete;

  // After all that is on the stream; waits for it.
  void Download(const void* device, void* host, size_t bytes);

 private:
  static constexpr size_t kBlockBytes = size_t{4} << 20;
  struct Block {
    void* memory = nullptr;
    cudaEvent_t copied = nullptr;
  };

  Block Take();
  void Return(Block block);

  const cudaStream_t stream_;
  std::mutex mutex_;
  std::vector<Block> free_;
};

}  // namespace moe::cuda
