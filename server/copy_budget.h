// Bounds the memory that copies for a cut take, and is where steps wait that need more of it.
// Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace moe {

class CopyBudget {
 public:
  // limit: bytes of all copies at once.
  explicit CopyBudget(int64_t limit) : limit_(limit) {}

  // Called, with a lock held, when somebody begins to wait and when nobody does any more. Before
  // the budget is used.
  void OnWait(std::function<void(bool waits)> fn) { on_wait_ = std::move(fn); }

  // Whether there is room for so many bytes more, which are then taken.
  bool Take(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives them back; the writer has come further, also if there are none.
  void Return(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  // Changes whenever the writer has come further.
  uint64_t progress() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until progress() isn't `seen` any more. False: it is over, and nobody needs copies.
  bool Await(uint64_t seen) ABSL_LOCKS_EXCLUDED(mutex_);
  // Nobody waits any more from here on.
  void Cancel() ABSL_LOCKS_EXCLUDED(mutex_);

  int64_t limit() const { return limit_; }
  int64_t used() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Since when somebody waits; none: nobody does.
  std::optional<absl::Time> waiting_since() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const int64_t limit_;
  std::function<void(bool waits)> on_wait_;
  mutable absl::Mutex mutex_;
  int64_t used_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t progress_ ABSL_GUARDED_BY(mutex_) = 0;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  int waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time since_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moe
