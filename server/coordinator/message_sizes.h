// Whether what a job sends in one message fits into one, as it is laid out. Checked before anything
// is allocated: FAILED_PRECONDITION with the figures, and what to change.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "common/job/model_plan.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

// A dense shard must fit into one message of max_bytes: who pulls it gets the whole of it
// in one.
absl::Status CheckShardSizes(const ModelPlan& plan, int64_t max_bytes);

// What a worker sends a server to close a step, and the rows of a table shard that it pulls, must
// each fit into one message, also if every word of the step is another one. The job has its
// vocabulary.
absl::Status CheckStepMessages(const v1::Job& job, const ModelPlan& plan,
                               const v1::Placement& placement,
                               std::span<const v1::ReplicaAssignment> replicas,
                               int64_t max_bytes);

}  // namespace moe
