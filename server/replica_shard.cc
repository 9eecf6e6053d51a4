#include "server/replica_shard.h"

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "server/shard_file.h"

namespace moe {

absl::Status ReplicaShard::Restore(const SafetensorsFile& file) {
  ASSIGN_OR_RETURN(const SafetensorsEntry entry, file.Find("state"));
  if (entry.dtype != "U8" || entry.shape.size() != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat(file.path(), ": state is not a row of bytes"));
  }
  ++version_;
  content_.assign(entry.bytes, '\0');
  return file.ReadAll(
      [&](const SafetensorsEntry& read, size_t begin, std::string_view bytes) {
        if (read.name == entry.name) bytes.copy(content_.data() + begin, bytes.size());
      });
}

absl::StatusOr<v1::ShardFile> ReplicaShard::Write(const Cut& cut) const {
  const SafetensorsEntry entry = {"state",
                                  "U8",
                                  {static_cast<int64_t>(content_.size())},
                                  content_.data(),
                                  content_.size()};
  return WriteShardFile(cut, spec_.id, std::span(&entry, 1), {});
}

absl::Status ReplicaShard::SetPiece(int64_t, uint64_t version, std::string_view content) {
  content_ = content;
  version_ = version;
  return absl::OkStatus();
}

void ReplicaShard::FillStatus(v1::ShardStatus* status) const {
  status->set_shard(spec_.id);
  status->set_parameter_bytes(content_.size());
}

}  // namespace moe
