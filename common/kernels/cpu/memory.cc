#include "common/kernels/cpu/memory.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdlib>

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/large_blocks.h"

namespace moe::cpu {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kLarge = size_t{1} << 20;
// Large blocks start at one of these many multiples of an odd number of cache lines.
constexpr size_t kColors = 16;
constexpr size_t kColorStep = 69 * kAlignment;
constexpr size_t kLastOffset = kAlignment + (kColors - 1) * kColorStep;
constexpr size_t kSmallestScratch = size_t{64} << 10;

// Stands just before the memory that callers get.
struct Header {
  void* base;
  size_t large_bytes;  // of the large block; 0: malloc's
};
static_assert(sizeof(Header) <= kAlignment);

// Sanitizers know malloc's blocks only, and when one of them ends.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kLargeBlock = SIZE_MAX;
constexpr bool kKeepScratch = false;
#else
constexpr size_t kLargeBlock = kHugePage;
constexpr bool kKeepScratch = true;
#endif

// Of the process, to its end.
LargeBlocks& TheLargeBlocks() {
  static LargeBlocks* const blocks = new LargeBlocks();
  return *blocks;
}

}  // namespace

void* AllocateAligned(size_t bytes) {
  size_t offset = kAlignment;
  if (bytes >= kLarge) {
    static std::atomic<size_t> color{0};
    offset += color.fetch_add(1, std::memory_order_relaxed) % kColors * kColorStep;
  }
  Header header;
  if (bytes >= kLargeBlock) {
    // Of one size wherever the array begins: else the block of one array would not do for the next
    // one, and as many would be kept as there are offsets.
    const LargeBlocks::Block block = TheLargeBlocks().Take(kLastOffset + bytes);
    header = {block.memory, block.bytes};
  } else {
    const size_t total = (offset + bytes + kAlignment - 1) / kAlignment * kAlignment;
    header = {std::aligned_alloc(kAlignment, total), 0};
    Check(header.base != nullptr, "enough memory");
  }
  char* const memory = static_cast<char*>(header.base) + offset;
  reinterpret_cast<Header*>(memory)[-1] = header;
  return memory;
}

void FreeAligned(void* memory) {
  if (memory == nullptr) return;
  const Header header = static_cast<Header*>(memory)[-1];
  if (header.large_bytes > 0) {
    TheLargeBlocks().Return({header.base, header.large_bytes});
  } else {
    std::free(header.base);
  }
}

ScratchPool::~ScratchPool() {
  for (const Block& block : free_) FreeAligned(block.memory);
}

ScratchPool::Block ScratchPool::Take(size_t bytes) {
  if (!kKeepScratch) return {AllocateAligned(bytes), bytes};
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
  if (!kKeepScratch) {
    FreeAligned(block.memory);
    return;
  }
  const std::lock_guard lock(mutex_);
  free_.push_back(block);
}

}  // namespace moe::cpu
