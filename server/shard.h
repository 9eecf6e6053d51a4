// What every kind of shard can do, beside its part in a step. Engine thread only
// (engine.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/io/safetensors.h"
#include "common/job/model_plan.h"
#include "proto/moe/v1/checkpoint.pb.h"
#include "proto/moe/v1/status.pb.h"

namespace moe {

// Where a cut goes, and what its files say about themselves.
struct Cut {
  // Folder of the cut; exists.
  std::string folder;
  std::string job;
  // Version of the shards in it.
  uint64_t step = 0;
};

class Shard {
 public:
  virtual ~Shard() = default;

  virtual const ShardSpec& spec() const = 0;
  // The state before the first step.
  virtual void Initialize() = 0;
  // The state in a file that Write made; an error names the file and what doesn't fit, or
  // is CapacityTier::Allocate's.
  virtual absl::Status Restore(const SafetensorsFile& file) = 0;
  // Writes <folder>/<shard file>; an error names the file and the system's text.
  virtual absl::StatusOr<v1::ShardFile> Write(const Cut& cut) const = 0;
  // Of its parameters but the untouched ones, in logical order.
  virtual std::vector<v1::TensorDigest> Digests() const = 0;
  // Ascending.
  virtual std::vector<v1::UntouchedTensors> Untouched() const { return {}; }
  // All but the version.
  virtual void FillStatus(v1::ShardStatus* status) const = 0;
};

}  // namespace moe
