#pragma once

#include <cstdint>

#include "proto/moe/v1/job.pb.h"

namespace moe {

// Rate of optimizer step `step` (0, 1, ...); a pass over the text has steps_per_epoch
// steps.
double LearningRate(const v1::Schedule& schedule, int64_t step, int64_t steps_per_epoch);

}  // namespace moe
