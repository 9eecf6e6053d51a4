#include "common/kernels/cpu/thread_pool.h"

#include <immintrin.h>

#include <algorithm>

#include "common/kernels/cpu/flush_denormals.h"

namespace moe::cpu {
namespace {

// Operations follow each other within microseconds; waking a sleeping thread costs several. Kept
// short because other processes may share the processor.
constexpr int kSpins = 300;

template <typename Condition>
bool SpinUntil(const Condition& condition) {
  for (int i = 0; i < kSpins; ++i) {
    if (condition()) return true;
    _mm_pause();
  }
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  jobs_.reserve(64);
  for (int i = 1; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_.store(true);
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::For(int64_t n, const std::function<void(int64_t)>& fn) {
  // As in the pool's threads: which one takes an index must not show.
  const FlushDenormals flush;
  if (n <= 1 || threads_.empty()) {
    for (int64_t i = 0; i < n; ++i) fn(i);
    return;
  }
  Job job{.fn = fn, .n = n};
  int wake = 0;
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(&job);
    submissions_.fetch_add(1);
    wake = static_cast<int>(std::min<int64_t>(n - 1, sleepers_));
  }
  for (int i = 0; i < wake; ++i) work_.notify_one();
  job.Work();
  {
    // Once it is off the list no further thread can join; then only helpers hold it.
    const std::lock_guard lock(mutex_);
    jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
  }
  if (SpinUntil([&] { return job.helpers.load(std::memory_order_acquire) == 0; })) return;
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return job.helpers.load() == 0; });
}

ThreadPool::Job* ThreadPool::FindJob() {
  // The newest first: it may be nested in an older one, which waits for it.
  for (auto it = jobs_.rbegin(); it != jobs_.rend(); ++it) {
    if (!(*it)->exhausted()) return *it;
  }
  return nullptr;
}

void ThreadPool::Run() {
  const FlushDenormals flush;
  std::unique_lock lock(mutex_);
  while (true) {
    Job* job = FindJob();
    if (job != nullptr) {
      job->helpers.fetch_add(1);
      lock.unlock();
      job->Work();
      lock.lock();
      if (job->helpers.fetch_sub(1, std::memory_order_acq_rel) == 1) done_.notify_all();
      continue;
    }
    if (stop_.load()) return;
    const uint64_t seen = submissions_.load();
    lock.unlock();
    const bool news =
        SpinUntil([&] { return submissions_.load() != seen || stop_.load(); });
    lock.lock();
    if (news) continue;
    ++sleepers_;
    work_.wait(lock, [&] { return stop_.load() || submissions_.load() != seen; });
    --sleepers_;
  }
}

}  // namespace moe::cpu
