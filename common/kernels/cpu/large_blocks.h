// Large blocks of memory straight from the kernel, on huge pages where the system has them,
// and kept for those who come after.
//
// malloc is no place for them: aligned blocks of megabytes that come and go with every step
// leave holes in its heap, which messages then fill in part, and a process grows to several
// times what it uses.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>

namespace moe::cpu {

inline constexpr size_t kHugePage = size_t{2} << 20;
inline constexpr size_t kSmallPage = size_t{4} << 10;

// Thread-safe.
class LargeBlocks {
 public:
  struct Block {
    void* memory = nullptr;  // aligned to kHugePage
    // A multiple of kSmallPage only: a block of a little more than a huge page isn't two of them.
    size_t bytes = 0;
  };

  LargeBlocks() = default;
  // Nothing is on loan any more.
  ~LargeBlocks();
  LargeBlocks(const LargeBlocks&) = delete;
  LargeBlocks& operator=(const LargeBlocks&) = delete;

  // Of at least so many bytes; contents are arbitrary. Aborts when memory runs out.
  Block Take(size_t bytes);
  void Return(Block block);

  // Of all blocks, on loan and kept: at most a quarter more than were ever on loan at once.
  size_t bytes() const;

 private:
  static Block Map(size_t bytes);
  static void Unmap(Block block);

  mutable std::mutex mutex_;
  std::multimap<size_t, void*> kept_;  // by bytes
  size_t kept_bytes_ = 0;
  size_t lent_bytes_ = 0;
  size_t most_lent_bytes_ = 0;
};

}  // namespace moe::cpu
