#include "server/engine.h"

#include <utility>

#include "absl/time/clock.h"

namespace moe {
namespace {

constexpr absl::Duration kIdlePeriod = absl::Milliseconds(200);

}  // namespace

Engine::Engine(std::function<void()> on_idle)
    : on_idle_(std::move(on_idle)), thread_([this] { Run(); }) {}

Engine::~Engine() { Stop(); }

void Engine::Post(std::function<void()> task) {
  absl::MutexLock lock(&mutex_);
  if (!stopped_) tasks_.push_back(std::move(task));
}

void Engine::Stop() {
  std::deque<std::function<void()>> dropped;
  {
    absl::MutexLock lock(&mutex_);
    stopped_ = true;
    dropped.swap(tasks_);
  }
  if (thread_.joinable()) thread_.join();
}

v1::MemberTimes Engine::Times() const {
  v1::MemberTimes times;
  times.set_computing(1e-9 * computing_ns_);
  times.set_waiting(1e-9 * waiting_ns_);
  times.set_moving(1e-9 * moving_ns_);
  return times;
}

void Engine::Run() {
  absl::Time mark = absl::Now();
  const auto lap = [&mark](std::atomic<int64_t>& into) {
    const absl::Time now = absl::Now();
    into += absl::ToInt64Nanoseconds(now - mark);
    mark = now;
  };
  while (true) {
    std::function<void()> task;
    {
      absl::MutexLock lock(&mutex_);
      const auto ready = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return stopped_ || !tasks_.empty();
      };
      mutex_.AwaitWithTimeout(absl::Condition(&ready), kIdlePeriod);
      if (stopped_) return;
      if (!tasks_.empty()) {
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
    }
    lap(waiting_ns_);
    if (task == nullptr) {
      on_idle_();
      continue;
    }
    task();
    lap(computing_ns_);
  }
}

}  // namespace moe
