// Recomputing a checkpoint's digest from its files.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/moe/v1/checkpoint.pb.h"

namespace moe {

struct CheckpointDigest {
  std::string folder;
  uint64_t step = 0;
  std::string digest;
  std::vector<v1::TensorDigest> tensors;
  std::vector<v1::UntouchedTensors> untouched;
};

// path: a checkpoint's folder, or a folder of checkpoints, of which the last is taken.
// Reads every parameter; DATA_LOSS names the file or the tensor that isn't as the
// manifest says.
absl::StatusOr<CheckpointDigest> DigestCheckpoint(const std::string& path);

}  // namespace moe
