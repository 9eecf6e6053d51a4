// Whether there is anything left to do for a coordinator that is started again.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "proto/moe/v1/job.pb.h"
#include "server/coordinator/restore.h"
#include "server/coordinator/store.h"

namespace moe {

// The last checkpoint of `job`, if the coordinator that had this state before saw the job
// finish and the job as it is now trains no longer than it did then; empty if it is to run.
absl::StatusOr<std::optional<RestorePoint>> FindFinishedRun(
    const v1::Job& job, Store& state, const std::string& checkpoint_dir);
// FAILED_PRECONDITION if another coordinator uses state_dir.
absl::StatusOr<std::optional<RestorePoint>> FindFinishedRun(
    const v1::Job& job, const std::string& state_dir, const std::string& checkpoint_dir);

}  // namespace moe
