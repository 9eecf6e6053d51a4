// What a worker spends its time on.
#pragma once

#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "proto/moe/v1/coordinator.pb.h"

namespace moe {

// kMoving: packing, unpacking and copying what goes over the wire. kWaiting: nothing to do until a
// server answers.
enum class Activity { kComputing, kMoving, kWaiting };

// Not thread-safe: the trainer's thread only.
class ActivityClock {
 public:
  // Sets what happens from now on and returns what happened until now.
  Activity Switch(Activity next) {
    const absl::Time now = absl::Now();
    spent_[static_cast<int>(current_)] += now - since_;
    since_ = now;
    return std::exchange(current_, next);
  }

  v1::MemberTimes Times() const {
    v1::MemberTimes times;
    times.set_computing(Seconds(Activity::kComputing));
    times.set_moving(Seconds(Activity::kMoving));
    times.set_waiting(Seconds(Activity::kWaiting));
    return times;
  }

 private:
  double Seconds(Activity activity) const {
    return absl::ToDoubleSeconds(spent_[static_cast<int>(activity)]);
  }

  absl::Duration spent_[3];
  Activity current_ = Activity::kComputing;
  absl::Time since_ = absl::Now();
};

// One activity as long as the object lives, then what was before.
class ActivityScope {
 public:
  ActivityScope(ActivityClock& clock, Activity activity)
      : clock_(clock), before_(clock.Switch(activity)) {}
  ~ActivityScope() { clock_.Switch(before_); }
  ActivityScope(const ActivityScope&) = delete;
  ActivityScope& operator=(const ActivityScope&) = delete;

 private:
  ActivityClock& clock_;
  const Activity before_;
};

}  // namespace moe
