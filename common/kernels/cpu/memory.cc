#include "common/kernels/cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdlib>

#include "common/kernels/cpu/check.h"

namespace moe::cpu {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kLarge = size_t{1} << 20;
constexpr size_t kHugePage = size_t{2} << 20;
// Large blocks start at one of these many multiples of an odd number of cache lines.
constexpr size_t kColors = 16;
constexpr size_t kColorStep = 69 * kAlignment;
constexpr size_t kSmallestScratch = size_t{64} << 10;

}  // namespace

void* AllocateAligned(size_t bytes) {
  size_t alignment = kAlignment;
  // The allocation's own address stands just before what the caller gets.
  size_t offset = kAlignment;
  if (bytes >= kLarge) {
    static std::atomic<size_t> color{0};
    offset += color.fetch_add(1, std::memory_order_relaxed) % kColors * kColorStep;
    if (bytes >= kHugePage) alignment = kHugePage;
  }
  const size_t total = (offset + bytes + alignment - 1) / alignment * alignment;
  char* base = static_cast<char*>(std::aligned_alloc(alignment, total));
  Check(base != nullptr, "enough memory");
  // Advice only: where it fails, ordinary pages serve.
  if (alignment == kHugePage) madvise(base, total, MADV_HUGEPAGE);
  char* memory = base + offset;
  reinterpret_cast<void**>(memory)[-1] = base;
  return memory;
}

void FreeAligned(void* memory) {
  if (memory != nullptr) std::free(static_cast<void**>(memory)[-1]);
}

ScratchPool::~ScratchPool() {
  for (const Block& block : free_) FreeAligned(block.memory);
}

ScratchPool::Block ScratchPool::Take(size_t bytes) {
  Block block;
  {
    const std::lock_guard lock(mutex_);
    // The smallest that suffices, else the largest, which then grows.
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (best == free_.end() ||
          (it->bytes >= bytes ? best->bytes < bytes || it->bytes < best->bytes
                              : best->bytes < bytes && it->bytes > best->bytes)) {
        best = it;
      }
    }
    if (best != free_.end()) {
      block = *best;
      *best = free_.back();
      free_.pop_back();
    }
  }
  if (block.bytes < bytes || block.memory == nullptr) {
    FreeAligned(block.memory);
    block.bytes = std::bit_ceil(std::max(bytes, kSmallestScratch));
    block.memory = AllocateAligned(block.bytes);
  }
  return block;
}

void ScratchPool::Return(Block block) {
  const std::lock_guard lock(mutex_);
  free_.push_back(block);
}

}  // namespace moe::cpu
