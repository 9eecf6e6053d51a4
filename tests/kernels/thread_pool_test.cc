#include "common/kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <thread>
#include <vector>

#include "common/kernels/cpu/flush_denormals.h"

namespace moe::cpu {
namespace {

TEST(ThreadPool, CallsEachIndexOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int64_t n : {0, 1, 2, 3, 1000}) {
      std::vector<std::atomic<int>> calls(n);
      pool.For(n, [&](int64_t i) { calls[i].fetch_add(1); });
      for (const auto& count : calls) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPool, NestedAndFromSeveralThreads) {
  ThreadPool pool(3);
  std::vector<std::thread> callers;
  std::atomic<int64_t> total{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        pool.For(5, [&](int64_t i) {
          pool.For(i, [&](int64_t j) {
            pool.For(2, [&](int64_t) { total.fetch_add(j + 1); });
          });
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  // Per round: 2 sum over i < 5 of (1 + ... + i).
  EXPECT_EQ(total.load(), 4 * 200 * 2 * (1 + 3 + 6 + 10));
}

TEST(ThreadPool, SubnormalsAreZeroOnEveryThread) {
  for (int threads : {1, 4}) {
    ThreadPool pool(threads);
    std::atomic<int> nonzero{0};
    pool.For(1000, [&](int64_t) {
      volatile float tiny = std::numeric_limits<float>::min();
      volatile float half = 0.5f;
      if (tiny * half != 0) nonzero.fetch_add(1);
    });
    EXPECT_EQ(nonzero.load(), 0) << threads;
  }
}

TEST(FlushDenormals, RestoresTheThreadsMode) {
  volatile float tiny = std::numeric_limits<float>::min();
  volatile float half = 0.5f;
  {
    const FlushDenormals flush;
    const FlushDenormals nested;
    EXPECT_EQ(tiny * half, 0);
  }
  EXPECT_GT(static_cast<double>(tiny) * half, 0);
  const volatile float product = tiny * half;
  EXPECT_NE(product, 0);
}

}  // namespace
}  // namespace moe::cpu
