// Reading and checking a job. Errors name the field and say what would be valid.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

// Reads text format, fills in the defaults that job.proto's comments name, and validates.
// INVALID_ARGUMENT: "<source>:<line>:<column>: ..." for what isn't text format of a Job,
// else ValidateJob's lines, each after "<source>: ".
absl::StatusOr<v1::Job> ReadJobFile(const std::string& path);
absl::StatusOr<v1::Job> ParseJob(const std::string& text, const std::string& source);

void FillDefaults(v1::Job* job);

// OK if every field is in its range, else INVALID_ARGUMENT with one line for each that
// isn't. model.vocabulary may be 0 (taken from the data later).
absl::Status ValidateJob(const v1::Job& job);

// What ValidateJob leaves to be checked when the data has told the vocabulary.
absl::Status CheckCandidates(const v1::Tables& tables, int64_t vocabulary);

}  // namespace moe
