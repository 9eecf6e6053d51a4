// Reading and checking a job. Errors name the field and say what would be valid.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

// Reads text format, fills in the defaults that job.proto's comments name, and validates.
absl::StatusOr<v1::Job> ReadJobFile(const std::string& path);
absl::StatusOr<v1::Job> ParseJob(const std::string& text, const std::string& source);

// OK if every field is in its range. model.vocabulary may be 0 (taken from the data
// later).
absl::Status ValidateJob(const v1::Job& job);

}  // namespace moe
