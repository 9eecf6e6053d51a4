#include "common/kernels/cpu/large_blocks.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "common/kernels/cpu/check.h"

namespace moe::cpu {
namespace {

constexpr size_t RoundUp(size_t bytes, size_t page) {
  return (bytes + page - 1) / page * page;
}

// A block serves requests down to four fifths of its size.
constexpr size_t Slack(size_t bytes) { return bytes + bytes / 4; }

}  // namespace

LargeBlocks::~LargeBlocks() {
  for (const auto& [bytes, memory] : kept_) Unmap({memory, bytes});
}

LargeBlocks::Block LargeBlocks::Take(size_t bytes) {
  const size_t total = RoundUp(bytes, kSmallPage);
  const std::lock_guard lock(mutex_);
  if (const auto kept = kept_.lower_bound(total);
      kept != kept_.end() && kept->first <= Slack(total)) {
    const Block block = {kept->second, kept->first};
    kept_.erase(kept);
    kept_bytes_ -= block.bytes;
    lent_bytes_ += block.bytes;
    most_lent_bytes_ = std::max(most_lent_bytes_, lent_bytes_);
    return block;
  }
  lent_bytes_ += total;
  most_lent_bytes_ = std::max(most_lent_bytes_, lent_bytes_);
  // Sizes that nobody asks for any more make room.
  while (!kept_.empty() && lent_bytes_ + kept_bytes_ > Slack(most_lent_bytes_)) {
    const auto largest = std::prev(kept_.end());
    kept_bytes_ -= largest->first;
    Unmap({largest->second, largest->first});
    kept_.erase(largest);
  }
  return Map(total);
}

void LargeBlocks::Return(Block block) {
  const std::lock_guard lock(mutex_);
  kept_.emplace(block.bytes, block.memory);
  kept_bytes_ += block.bytes;
  lent_bytes_ -= block.bytes;
}

size_t LargeBlocks::bytes() const {
  const std::lock_guard lock(mutex_);
  return lent_bytes_ + kept_bytes_;
}

LargeBlocks::Block LargeBlocks::Map(size_t bytes) {
  // One huge page more than needed, so that there is an aligned block in it.
  void* const mapped = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  Check(mapped != MAP_FAILED, "enough memory");
  char* const begin = static_cast<char*>(mapped);
  char* const memory =
      reinterpret_cast<char*>(RoundUp(reinterpret_cast<uintptr_t>(mapped), kHugePage));
  char* const end = memory + bytes;
  if (memory > begin) munmap(begin, memory - begin);
  munmap(end, begin + bytes + kHugePage - end);
  // Advice only: where it fails, ordinary pages serve, as they do for what is left of the last one.
  madvise(memory, bytes, MADV_HUGEPAGE);
  return {memory, bytes};
}

void LargeBlocks::Unmap(Block block) { munmap(block.memory, block.bytes); }

}  // namespace moe::cpu
