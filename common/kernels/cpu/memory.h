// Memory for operands and for the scratch space of operations.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

namespace moe::cpu {

// 64-byte aligned; large blocks lie on huge pages where the system has them, at distances that
// aren't powers of two, so that streams over several of them don't fight for the same cache sets.
// Never null; aborts when memory runs out. Thread-safe.
void* AllocateAligned(size_t bytes);
void FreeAligned(void* memory);

// Blocks of scratch memory that are kept and lent again, so that operations in steady state
// allocate nothing. Thread-safe.
class ScratchPool {
 public:
  struct Block {
    void* memory = nullptr;
    size_t bytes = 0;
  };

  // A block on loan; returns it when destroyed. Contents are arbitrary.
  template <typename T>
  class Lease {
   public:
    Lease(ScratchPool& pool, size_t count)
        : pool_(pool), block_(pool.Take(count * sizeof(T))) {}
    ~Lease() { pool_.Return(block_); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    T* data() const { return static_cast<T*>(block_.memory); }
    T& operator[](size_t i) const { return data()[i]; }

   private:
    ScratchPool& pool_;
    const Block block_;
  };

  ScratchPool() = default;
  ~ScratchPool();
  ScratchPool(const ScratchPool&) = delete;
  ScratchPool& operator=(const ScratchPool&) = delete;

 private:
  Block Take(size_t bytes);
  void Return(Block block);

  std::mutex mutex_;
  std::vector<Block> free_;
};

template <typename T>
using Scratch = ScratchPool::Lease<T>;

}  // namespace moe::cpu
