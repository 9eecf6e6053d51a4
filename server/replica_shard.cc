#include "server/replica_shard.h"

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
  content_ = std::make_shared<const std::string>(static_cast<const char*>(entry.data),
                                                 entry.bytes);
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

void ReplicaShard::FillStatus(v1::ShardStatus* status) const {
  status->set_shard(spec_.id);
  status->set_parameter_bytes(content_->size());
}

}  // namespace moe
