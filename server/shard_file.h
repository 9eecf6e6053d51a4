// The file of one shard in a checkpoint's folder (checkpoint.proto).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/io/safetensors.h"
#include "common/io/sha256.h"
#include "common/job/model_plan.h"
#include "proto/moe/v1/checkpoint.pb.h"

namespace moe {

// Where a cut goes, and what its files say about themselves.
struct Cut {
  // Folder of the cut; exists.
  std::string folder;
  std::string job;
  // Version of the shards in it.
  uint64_t step = 0;
};

// `metadata` is added to the job's name, the step and the shard's id. watch: without `written`, for
// the file is hashed as it is written. The result has no tensors yet.
absl::StatusOr<v1::ShardFile> WriteShardFile(const Cut& cut, const std::string& shard,
                                             std::span<const SafetensorsEntry> entries,
                                             std::map<std::string, std::string> metadata,
                                             SafetensorsWatch watch = {});

// Opens the file of `shard` in a checkpoint's `folder` and checks that it is that shard's, at version
// `step`. What is read of it must have the SHA-256 of the manifest.
absl::StatusOr<std::unique_ptr<SafetensorsFile>> OpenShardFile(
    const std::string& folder, const v1::Manifest& manifest, const std::string& shard,
    uint64_t step);

// sha: over the tensor's stored bytes; finished by this.
v1::TensorDigest MakeTensorDigest(const TensorSpec& tensor, Sha256& sha);

// The entry with that dtype and shape; an error names the file and what is there instead.
absl::StatusOr<SafetensorsEntry> FindEntry(const SafetensorsFile& file,
                                           const std::string& name,
                                           const std::string& dtype,
                                           const std::vector<int64_t>& shape);

}  // namespace moe
