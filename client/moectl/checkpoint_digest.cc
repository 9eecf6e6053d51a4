#include "client/moectl/checkpoint_digest.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/manifest.h"
#include "common/io/safetensors.h"
#include "common/io/sha256.h"

namespace moe {

absl::StatusOr<CheckpointDigest> DigestCheckpoint(const std::string& path) {
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, FindCheckpoint(path));
  const v1::Manifest& manifest = checkpoint.manifest;
  RETURN_IF_ERROR(VerifyContents(checkpoint.folder, manifest));
  CheckpointDigest result;
  result.folder = checkpoint.folder;
  result.step = manifest.step();
  for (const v1::ShardFile& shard : manifest.shards()) {
    result.untouched.insert(result.untouched.end(), shard.untouched().begin(),
                            shard.untouched().end());
    if (shard.tensors().empty()) continue;
    const std::string file_path = absl::StrCat(checkpoint.folder, "/", shard.file());
    ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file,
                     SafetensorsFile::Open(file_path));
    for (const v1::TensorDigest& tensor : shard.tensors()) {
      ASSIGN_OR_RETURN(const SafetensorsEntry entry, file->Find(tensor.name()));
      ASSIGN_OR_RETURN(const std::string bytes, file->Read(entry));
      v1::TensorDigest& digest = result.tensors.emplace_back(tensor);
      digest.set_sha256(Sha256Hex(bytes));
      if (digest.sha256() != tensor.sha256()) {
        return absl::DataLossError(
            absl::StrCat(file_path, ": tensor ", tensor.name(), " has SHA-256 ",
                         digest.sha256(), ", but the manifest says ", tensor.sha256()));
      }
    }
  }
  ASSIGN_OR_RETURN(result.digest, ModelDigest(result.tensors, result.untouched));
  if (result.digest != manifest.digest()) {
    return absl::DataLossError(absl::StrCat(checkpoint.folder, ": the digest is ",
                                            result.digest, ", but the manifest says ",
                                            manifest.digest()));
  }
  return result;
}

}  // namespace moe
