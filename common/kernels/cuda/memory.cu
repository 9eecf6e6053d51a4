#include <algorithm>
#include <cstring>
#include <utility>

#include "common/kernels/cuda/memory.h"

namespace moe::cuda {

void* AllocateOnStream(size_t bytes, cudaStream_t stream) {
  void* memory = nullptr;
  const cudaError_t error = cudaMallocAsync(&memory, bytes, stream);
  if (error == cudaSuccess && memory != nullptr) return memory;
  size_t free = 0;
  size_t total = 0;
  cudaMemGetInfo(&free, &total);
  std::fprintf(stderr,
               "out of memory on the GPU: %zu bytes wanted, %zu of %zu are free (%s)\n",
               bytes, free, total, cudaGetErrorString(error));
  std::abort();
}

void* DeviceMemory::Allocate(size_t bytes) {
  if (bytes == 0) return nullptr;
  void* const memory = AllocateOnStream(bytes, stream_);
  const std::lock_guard lock(mutex_);
  blocks_.emplace(static_cast<const char*>(memory), bytes);
  return memory;
}

void DeviceMemory::Free(void* memory) {
  if (memory == nullptr) return;
  {
    const std::lock_guard lock(mutex_);
    Check(blocks_.erase(static_cast<const char*>(memory)) == 1,
          "this backend's memory is freed, once");
  }
  CheckOk(cudaFreeAsync(memory, stream_));
}

bool DeviceMemory::Has(const void* address) const {
  const char* const at = static_cast<const char*>(address);
  const std::lock_guard lock(mutex_);
  auto it = blocks_.upper_bound(at);
  if (it == blocks_.begin()) return false;
  --it;
  return at < it->first + it->second;
}

UploadRing::UploadRing(cudaStream_t stream, size_t segment_bytes)
    : stream_(stream), segment_bytes_(segment_bytes) {
  void* memory = nullptr;
  CheckOk(cudaHostAlloc(&memory, kSegments * segment_bytes, cudaHostAllocDefault));
  memory_ = static_cast<char*>(memory);
  for (cudaEvent_t& event : copied_) {
    CheckOk(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  }
}

UploadRing::~UploadRing() {
  CheckOk(cudaStreamSynchronize(stream_));
  for (cudaEvent_t event : copied_) CheckOk(cudaEventDestroy(event));
  CheckOk(cudaFreeHost(memory_));
}

void UploadRing::NextSegment() {
  CheckOk(cudaEventRecord(copied_[segment_], stream_));
  segment_ = (segment_ + 1) % kSegments;
  CheckOk(cudaEventSynchronize(copied_[segment_]));
  used_ = 0;
}

void UploadRing::Upload(const void* host, void* device, size_t bytes) {
  constexpr size_t kAlignment = 64;
  size_t done = 0;
  while (done < bytes) {
    if (used_ >= segment_bytes_) NextSegment();
    const size_t part = std::min(bytes - done, segment_bytes_ - used_);
    char* const pinned = memory_ + segment_ * segment_bytes_ + used_;
    std::memcpy(pinned, static_cast<const char*>(host) + done, part);
    CheckOk(cudaMemcpyAsync(static_cast<char*>(device) + done, pinned, part,
                            cudaMemcpyHostToDevice, stream_));
    used_ += (part + kAlignment - 1) / kAlignment * kAlignment;
    done += part;
  }
}

Downloads::~Downloads() {
  for (const Block& block : free_) {
    CheckOk(cudaEventDestroy(block.copied));
    CheckOk(cudaFreeHost(block.memory));
  }
}

Downloads::Block Downloads::Take() {
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      const Block block = free_.back();
      free_.pop_back();
      return block;
    }
  }
  Block block;
  CheckOk(cudaHostAlloc(&block.memory, kBlockBytes, cudaHostAllocDefault));
  CheckOk(cudaEventCreateWithFlags(&block.copied, cudaEventDisableTiming));
  return block;
}

void Downloads::Return(Block block) {
  const std::lock_guard lock(mutex_);
  free_.push_back(block);
}

void Downloads::Download(const void* device, void* host, size_t bytes) {
  struct Part {
    Block block;
    size_t begin;
    size_t bytes;
  };
  const auto issue = [&](size_t begin) {
    const Part part{Take(), begin, std::min(kBlockBytes, bytes - begin)};
    CheckOk(cudaMemcpyAsync(part.block.memory, static_cast<const char*>(device) + begin,
                            part.bytes, cudaMemcpyDeviceToHost, stream_));
    CheckOk(cudaEventRecord(part.block.copied, stream_));
    return part;
  };
  if (bytes == 0) return;
  // The next part crosses while this one is copied on.
  Part part = issue(0);
  while (true) {
    const size_t next = part.begin + part.bytes;
    const Part following = next < bytes ? issue(next) : Part{};
    CheckOk(cudaEventSynchronize(part.block.copied));
    std::memcpy(static_cast<char*>(host) + part.begin, part.block.memory, part.bytes);
    Return(part.block);
    if (following.bytes == 0) return;
    part = following;
  }
}

}  // namespace moe::cuda
