// The threads that operations share.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "common/kernels/backend.h"

namespace moe::cpu {

// Several threads may call For at once and For may be nested: a caller always works on its own job,
// and idle pool threads join whichever job has items left.
class ThreadPool : public Parallel {
 public:
  // threads >= 1 counts the calling thread: threads - 1 are started.
  explicit ThreadPool(int threads);
  ~ThreadPool() override;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  void For(int64_t n, const std::function<void(int64_t)>& fn) override;

 private:
  struct Job {
    const std::function<void(int64_t)>& fn;
    const int64_t n;
    std::atomic<int64_t> next{0};
    std::atomic<int> helpers{0};  // changes under mutex_

    void Work() {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) fn(i);
    }
    bool exhausted() const { return next.load(std::memory_order_relaxed) >= n; }
  };

  void Run();
  Job* FindJob();  // requires mutex_

  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable done_;
  std::vector<Job*> jobs_;
  int sleepers_ = 0;
  std::atomic<uint64_t> submissions_{0};  // changes under mutex_; idle threads watch it
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

// Calls fn(i) for i in [0, n), on several threads if n > 1. Unlike Parallel::For itself it never
// copies fn into allocated memory.
template <typename Fn>
void ForEach(Parallel& parallel, int64_t n, const Fn& fn) {
  if (n == 1) return fn(int64_t{0});
  if (n > 0) parallel.For(n, std::cref(fn));
}

// Calls fn(begin, end) for consecutive ranges of [0, n) of `grain` elements. For work whose
// elements are independent of each other.
template <typename Fn>
void ForRanges(Parallel& parallel, int64_t n, int64_t grain, const Fn& fn) {
  if (grain < 1) grain = 1;
  ForEach(parallel, (n + grain - 1) / grain, [&](int64_t i) {
    const int64_t begin = i * grain;
    fn(begin, begin + grain < n ? begin + grain : n);
  });
}

}  // namespace moe::cpu
