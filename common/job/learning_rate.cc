#include "common/job/learning_rate.h"

#include <algorithm>
#include <cmath>

#include "glog/logging.h"

namespace moe {

double LearningRate(const v1::Schedule& schedule, int64_t step, int64_t steps_per_epoch) {
  const double base = schedule.base_rate();
  switch (schedule.kind_case()) {
    case v1::Schedule::kInverseSqrt: {
      const double t = static_cast<double>(step + 1);
      const double warmup = schedule.inverse_sqrt().warmup_steps();
      CHECK_GT(warmup, 0);
      return base * std::min(t / warmup, std::sqrt(warmup / t));
    }
    case v1::Schedule::kStepDecay: {
      CHECK_GT(steps_per_epoch, 0);
      const int64_t epoch = step / steps_per_epoch;
      // Multiplied out, not std::pow: the rate is part of the result and must not depend
      // on libm.
      double rate = base;
      for (int64_t e = schedule.step_decay().constant_epochs(); e <= epoch; ++e) {
        rate *= schedule.step_decay().factor();
      }
      return rate;
    }
    case v1::Schedule::kConstant:
    case v1::Schedule::KIND_NOT_SET:
      break;
  }
  return base;
}

}  // namespace moe
