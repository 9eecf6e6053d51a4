// The thread that does a server's work on its shards: complete rendezvous in the order in
// which they became complete, and what is asked of the shards in between.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/moe/v1/coordinator.pb.h"

namespace moe {

class Engine {
 public:
  // on_idle: called by the engine's thread a few times a second while there is no work.
  explicit Engine(std::function<void()> on_idle);
  // Stops.
  ~Engine();

  // Any thread; no effect after Stop.
  void Post(std::function<void()> task);
  // Ends after the task in progress; those not begun are destroyed.
  void Stop();

  // ---- what the time went into; any thread
  void AddMoving(absl::Duration duration) {
    moving_ns_ += absl::ToInt64Nanoseconds(duration);
  }
  v1::MemberTimes Times() const;

 private:
  void Run();

  const std::function<void()> on_idle_;
  absl::Mutex mutex_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<int64_t> computing_ns_ = 0;
  std::atomic<int64_t> waiting_ns_ = 0;
  std::atomic<int64_t> moving_ns_ = 0;
  std::thread thread_;
};

}  // namespace moe
