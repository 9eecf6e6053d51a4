// Finding the checkpoint that a run begins with.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/moe/v1/checkpoint.pb.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

struct RestorePoint {
  std::string folder;
  v1::Manifest manifest;
  v1::Job job;
};

// path: a checkpoint's own folder, or a folder of checkpoints, of which the last one is
// taken. Checks all files against the manifest. NOT_FOUND if there is no checkpoint,
// DATA_LOSS if it is damaged.
absl::StatusOr<RestorePoint> FindRestorePoint(const std::string& path);

// "modified: training.lanes: 4 -> 8", of two jobs; empty if they are the same. A vocabulary of 0 is that of
// the data.
std::string FirstDifference(const v1::Job& then, v1::Job now);

// FAILED_PRECONDITION names the first field that decides the result and differs; how long
// a job trains and how often it evaluates or cuts does not. A vocabulary of 0 is the
// checkpoint's.
absl::Status CheckSameJob(const RestorePoint& point, const v1::Job& job);

}  // namespace moe
