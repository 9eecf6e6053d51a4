// Lines of progress for people, written by a thread of their own: a terminal that is
// stopped, or a pipe that nobody reads, must not hold up the cluster.
#pragma once

#include <deque>
#include <ostream>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace moe {

// Thread-safe.
class LinePrinter {
 public:
  // out outlives this object; null: nothing is written.
  explicit LinePrinter(std::ostream* out);
  // Writes what is left.
  ~LinePrinter();

  // Drops the line if very many are waiting.
  void Print(const std::string& line);

 private:
  void Run();

  std::ostream* const out_;
  absl::Mutex mutex_;
  std::deque<std::string> lines_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace moe
