#include "common/kernels/cpu/memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <set>
#include <thread>
#include <vector>

#include "common/kernels/cpu/large_blocks.h"

namespace moe::cpu {
namespace {

TEST(AllocateAligned, OfAnySize) {
  std::vector<std::pair<unsigned char*, size_t>> blocks;
  unsigned char fill = 0;
  for (const size_t bytes :
       {size_t{0}, size_t{1}, size_t{64}, size_t{100'000}, size_t{1} << 20,
        kHugePage - 64, kHugePage, 3 * kHugePage + 1}) {
    for (int i = 0; i < 3; ++i) {
      auto* const memory = static_cast<unsigned char*>(AllocateAligned(bytes));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 64, 0) << bytes;
      std::memset(memory, ++fill, bytes);
      blocks.emplace_back(memory, bytes);
    }
  }
  fill = 0;
  for (const auto& [memory, bytes] : blocks) {
    ++fill;
    for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(memory[i], fill) << bytes << " " << i;
    FreeAligned(memory);
  }
  FreeAligned(nullptr);
}

// As a group's gates with their moments: 100 arrays of a huge page each take no more than a tenth
// more than that.
TEST(AllocateAligned, ALittleMoreThanAHugePageIsNotTwo) {
  const auto resident = [] {
    // Pages of 4 KiB: all, and those in RAM.
    std::ifstream file("/proc/self/statm");
    int64_t all = 0, pages = 0;
    file >> all >> pages;
    return pages * int64_t{4096};
  };
  constexpr int kArrays = 100;
  std::vector<void*> arrays;
  const int64_t before = resident();
  for (int i = 0; i < kArrays; ++i) {
    std::memset(arrays.emplace_back(AllocateAligned(kHugePage)), 1, kHugePage);
  }
  EXPECT_LT(resident() - before, int64_t{kArrays} * kHugePage * 11 / 10);
  for (void* array : arrays) FreeAligned(array);
}

// Arrays of one size that come and go begin in different places of the same block.
TEST(AllocateAligned, OneBlockServesArraysOfOneSize) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "sanitizers know malloc's blocks only";
#endif
  std::set<uintptr_t> begins;
  std::set<uintptr_t> blocks;
  for (int i = 0; i < 50; ++i) {
    void* const memory = AllocateAligned(5 * kHugePage);
    const auto begin = reinterpret_cast<uintptr_t>(memory);
    begins.insert(begin);
    blocks.insert(begin / kHugePage);
    FreeAligned(memory);
  }
  EXPECT_EQ(begins.size(), 16u);
  EXPECT_EQ(blocks.size(), 1u);
}

TEST(ScratchPoolDeathTest, ASanitizerKnowsWhereABlockEnds) {
#ifndef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "only under AddressSanitizer";
#else
  ScratchPool pool;
  const Scratch<char> scratch(pool, 100);
  volatile char* const beyond = scratch.data() + 128;
  EXPECT_DEATH(*beyond = 1, "heap-buffer-overflow");
#endif
}

TEST(LargeBlocks, AreDisjointAndAligned) {
  LargeBlocks blocks;
  std::vector<LargeBlocks::Block> taken;
  std::set<uintptr_t> pages;
  for (const size_t bytes : {size_t{1}, kHugePage, kHugePage + 1, 5 * kHugePage}) {
    const LargeBlocks::Block block = taken.emplace_back(blocks.Take(bytes));
    EXPECT_GE(block.bytes, bytes);
    EXPECT_LT(block.bytes, bytes + kSmallPage);
    const auto begin = reinterpret_cast<uintptr_t>(block.memory);
    EXPECT_EQ(begin % kHugePage, 0);
    EXPECT_EQ(block.bytes % kSmallPage, 0);
    for (size_t at = 0; at < block.bytes; at += kHugePage) {
      EXPECT_TRUE(pages.insert(begin + at).second);
    }
    std::memset(block.memory, 1, block.bytes);
  }
  EXPECT_EQ(blocks.bytes(), 2 * kSmallPage + (1 + 1 + 5) * kHugePage);
  for (const LargeBlocks::Block& block : taken) blocks.Return(block);
}

TEST(LargeBlocks, AreLentAgain) {
  LargeBlocks blocks;
  const LargeBlocks::Block block = blocks.Take(8 * kHugePage);
  blocks.Return(block);
  const LargeBlocks::Block smaller = blocks.Take(7 * kHugePage);
  EXPECT_EQ(smaller.memory, block.memory);
  EXPECT_EQ(smaller.bytes, block.bytes);
  // Too large a block for this.
  blocks.Return(smaller);
  const LargeBlocks::Block small = blocks.Take(kHugePage);
  EXPECT_NE(small.memory, block.memory);
  EXPECT_EQ(small.bytes, kHugePage);
  blocks.Return(small);
}

TEST(LargeBlocks, KeepNoSizesThatNobodyAsksFor) {
  LargeBlocks blocks;
  for (size_t pages = 1; pages <= 100; ++pages) {
    const LargeBlocks::Block a = blocks.Take(pages * kHugePage);
    const LargeBlocks::Block b = blocks.Take((101 - pages) * kHugePage);
    // All that ever was on loan, and a quarter more.
    EXPECT_LE(blocks.bytes(), (101 + 50) * kHugePage);
    blocks.Return(a);
    blocks.Return(b);
  }
}

TEST(LargeBlocks, ServeAllThreads) {
  LargeBlocks blocks;
  std::vector<std::thread> threads;
  for (unsigned char t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const LargeBlocks::Block block = blocks.Take((1 + i % 3) * kHugePage);
        auto* const memory = static_cast<unsigned char*>(block.memory);
        memory[0] = memory[block.bytes - 1] = t;
        std::this_thread::yield();
        EXPECT_EQ(memory[0], t);
        EXPECT_EQ(memory[block.bytes - 1], t);
        blocks.Return(block);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace moe::cpu
