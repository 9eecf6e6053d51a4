#include "server/replica_shard.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "server/shard_cut.h"

namespace moe {

absl::Status ReplicaShard::Restore(const SafetensorsFile& file) {
  ASSIGN_OR_RETURN(const SafetensorsEntry entry, file.Find("state"));
  if (entry.dtype != "U8" || entry.shape.size() != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat(file.path(), ": state is not a row of bytes"));
  }
  auto content = std::make_shared<std::string>(entry.bytes, '\0');
  RETURN_IF_ERROR(file.ReadAll(
      [&](const SafetensorsEntry& read, size_t begin, std::string_view bytes) {
        if (read.name == entry.name) bytes.copy(content->data() + begin, bytes.size());
      }));
  content_ = std::move(content);
  ++version_;
  return absl::OkStatus();
}

std::shared_ptr<ShardCut> ReplicaShard::BeginCut(CopyBudget& copies) {
  const auto bytes = static_cast<int64_t>(content_->size());
  ShardCut::Entry entry = {"state", "U8", {bytes}, content_->data(), bytes};
  entry.on_host = true;
  entry.owner = content_;
  return std::make_shared<ShardCut>(backend_, copies, spec_.id,
                                    std::vector<ShardCut::Entry>{std::move(entry)});
}

absl::Status ReplicaShard::SetPiece(int64_t, uint64_t version, std::string_view content) {
  content_ = std::make_shared<const std::string>(content);
  version_ = version;
  return absl::OkStatus();
}

void ReplicaShard::FillStatus(v1::ShardStatus* status) const {
  status->set_shard(spec_.id);
  status->set_parameter_bytes(content_->size());
}

}  // namespace moe
