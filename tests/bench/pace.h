// Training that stops after each step until it may take another: so that steps of a running worker can be
// timed in turn with other measurements.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/membership/member.h"

namespace moe {

// Thread-safe.
class Pace {
 public:
  // Lets `steps` steps be taken and returns how long they took. DEADLINE_EXCEEDED if they aren't taken in
  // time, or the error with which training ended.
  absl::StatusOr<absl::Duration> Take(int64_t steps, absl::Duration timeout);

  // By the worker at the end of a step: waits until there may be another.
  void AwaitNext();
  // No more steps will be taken, or all that are left without a pause.
  void End(const absl::Status& cause);

 private:
  absl::Mutex mutex_;
  int64_t allowed_ ABSL_GUARDED_BY(mutex_) = 1;  // the first isn't asked for
  int64_t taken_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status over_ ABSL_GUARDED_BY(mutex_);
};

// What a worker's membership becomes: as `member`, but its reports of steps keep the pace. The pace
// outlives it.
std::unique_ptr<Member> KeepPace(std::unique_ptr<Member> member, Pace& pace);

}  // namespace moe
