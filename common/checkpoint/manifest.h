// Checkpoints on disk (checkpoint.proto): one folder for each.
//
//   <checkpoint_dir>/step-00000120/manifest.json
//                                  dense-0.safetensors
//                                  layer1-group0.safetensors
//                                  replica-0.safetensors
//
// While servers write a cut, its folder is named step-00000120.generation-3; it gets its manifest and
// then its name as a checkpoint once it is whole. So a process of an earlier generation, which may
// wake up at any time, finds no folder of its cut any more.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/moe/v1/checkpoint.pb.h"

namespace moe {

inline constexpr int32_t kManifestVersion = 1;

struct Checkpoint {
  // Path of the checkpoint's own folder.
  std::string folder;
  v1::Manifest manifest;
};

// "step-00000120"
std::string StepFolderName(uint64_t step);
// "step-00000120.generation-3"
std::string CutFolderName(uint64_t step, uint64_t generation);
// "layer1/group0" -> "layer1-group0.safetensors"
std::string ShardFileName(const std::string& shard);
std::string ManifestPath(const std::string& folder);

// Without the checksum, which is that of the file. NOT_FOUND if the folder has no manifest, DATA_LOSS if it
// is damaged.
absl::StatusOr<v1::Manifest> ReadManifest(const std::string& folder);
// Atomic, and with a checksum of its own; a cut's folder needs only its name then to be a checkpoint.
absl::Status WriteManifest(const std::string& folder, const v1::Manifest& manifest);

// Checks that every shard's file is there with its size. DATA_LOSS names the first that
// isn't.
absl::Status VerifySizes(const std::string& folder, const v1::Manifest& manifest);
// Reads every file, too, and compares its SHA-256.
absl::Status VerifyContents(const std::string& folder, const v1::Manifest& manifest);

// Ascending by step; step folders without a manifest don't count. Empty if there is no
// such folder.
absl::StatusOr<std::vector<Checkpoint>> ListCheckpoints(
    const std::string& checkpoint_dir);
// path: a checkpoint's own folder, or a folder of checkpoints, of which the last one is
// taken. NOT_FOUND if there is none.
absl::StatusOr<Checkpoint> FindCheckpoint(const std::string& path);
// A folder of a checkpoint or a cut.
struct StepFolder {
  uint64_t step;
  std::string path;
  bool committed;
};
// Cuts that were never committed, and step folders without a manifest, ascending by step.
absl::StatusOr<std::vector<StepFolder>> ListUncommitted(
    const std::string& checkpoint_dir);
// Of a list that is ascending by step; null if there is none.
const Checkpoint* LastCheckpoint(std::span<const Checkpoint> checkpoints);
// Lowest validation perplexity, the later one of equals; null if none was evaluated.
const Checkpoint* BestCheckpoint(std::span<const Checkpoint> checkpoints);

// SHA-256 (hex) over the raw SHA-256 of each logical tensor, given as hex in logical
// order.
absl::StatusOr<std::string> ModelDigest(std::span<const std::string> tensor_sha256);
// The same for the digests of all tensors of a model in any order, where an untouched tensor
// has the SHA-256 of "untouched <index> <seed>": FAILED_PRECONDITION names a tensor that is
// missing or there twice.
absl::StatusOr<std::string> ModelDigest(std::vector<v1::TensorDigest> tensors,
                                        std::vector<v1::UntouchedTensors> untouched);

}  // namespace moe
