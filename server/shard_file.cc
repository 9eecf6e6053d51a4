#include "server/shard_file.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/manifest.h"
#include "common/io/sha256.h"

namespace moe {
namespace {

absl::Status CheckMetadata(const SafetensorsFile& file, const std::string& key,
                           const std::string& wanted) {
  const auto it = file.metadata().find(key);
  const std::string found = it == file.metadata().end() ? "nothing" : it->second;
  if (found == wanted) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(file.path(), ": its ", key, " is ", found, " instead of ", wanted));
}

}  // namespace

absl::StatusOr<v1::ShardFile> WriteShardFile(const Cut& cut, const std::string& shard,
                                             std::span<const SafetensorsEntry> entries,
                                             std::map<std::string, std::string> metadata,
                                             SafetensorsWatch watch) {
  metadata["job"] = cut.job;
  metadata["step"] = absl::StrCat(cut.step);
  metadata["shard"] = shard;
  v1::ShardFile result;
  result.set_shard(shard);
  result.set_file(ShardFileName(shard));
  const std::string path = absl::StrCat(cut.folder, "/", result.file());
  Sha256 sha;
  uint64_t bytes = 0;
  watch.written = [&](std::string_view written) {
    sha.Update(written);
    bytes += written.size();
  };
  RETURN_IF_ERROR(WriteSafetensors(path, entries, metadata, watch));
  result.set_sha256(sha.Hex());
  result.set_bytes(bytes);
  return result;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> OpenShardFile(
    const std::string& folder, const v1::Manifest& manifest, const std::string& shard,
    uint64_t step) {
  const auto listed =
      std::find_if(manifest.shards().begin(), manifest.shards().end(),
                   [&](const v1::ShardFile& file) { return file.shard() == shard; });
  if (listed == manifest.shards().end()) {
    return absl::DataLossError(
        absl::StrCat(ManifestPath(folder), ": names no file of shard ", shard));
  }
  ASSIGN_OR_RETURN(
      std::unique_ptr<SafetensorsFile> file,
      SafetensorsFile::Open(absl::StrCat(folder, "/", listed->file()), listed->sha256()));
  RETURN_IF_ERROR(CheckMetadata(*file, "shard", shard));
  RETURN_IF_ERROR(CheckMetadata(*file, "step", absl::StrCat(step)));
  return file;
}

v1::TensorDigest MakeTensorDigest(const TensorSpec& tensor, Sha256& sha) {
  v1::TensorDigest digest;
  digest.set_tensor(tensor.index);
  digest.set_name(tensor.name);
  digest.set_sha256(sha.Hex());
  return digest;
}

absl::StatusOr<SafetensorsEntry> FindEntry(const SafetensorsFile& file,
                                           const std::string& name,
                                           const std::string& dtype,
                                           const std::vector<int64_t>& shape) {
  ASSIGN_OR_RETURN(SafetensorsEntry entry, file.Find(name));
  if (entry.dtype == dtype && entry.shape == shape) return entry;
  return absl::FailedPreconditionError(
      absl::StrCat(file.path(), ": ", name, " is ", entry.dtype, " [",
                   absl::StrJoin(entry.shape, ", "), "] instead of ", dtype, " [",
                   absl::StrJoin(shape, ", "), "]"));
}

}  // namespace moe
