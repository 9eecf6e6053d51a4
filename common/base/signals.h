// An orderly end of a process on SIGINT or SIGTERM.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

namespace moe {

// Blocks SIGINT and SIGTERM in the calling thread and in all that it starts. Call it
// first in main; until a TerminationHandler is there, these signals stay pending. Threads
// that libraries started before main are taken care of.
void BlockTerminationSignals();

// Runs the callback, on a thread of its own, at the first SIGINT or SIGTERM. A second one
// ends the process at once with status 128 + signal. One instance at a time;
// BlockTerminationSignals first.
class TerminationHandler {
 public:
  explicit TerminationHandler(std::function<void(int signal)> callback);
  // Waits for a callback that is running. Signals are then left pending.
  ~TerminationHandler();
  TerminationHandler(const TerminationHandler&) = delete;
  TerminationHandler& operator=(const TerminationHandler&) = delete;

 private:
  void Watch();
  void Wake();

  const std::function<void(int signal)> callback_;
  const int signal_fd_;
  const int wake_fd_;
  std::atomic<bool> stopping_ = false;
  std::atomic<bool> callback_running_ = false;
  std::thread callback_thread_;  // started by watcher_
  std::thread watcher_;
};

}  // namespace moe
