// A shard's file of a cut, written while nothing changes the shard.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/moe/v1/checkpoint.pb.h"
#include "server/copy_budget.h"
#include "server/shard_cut.h"

namespace moe::testing {

// shard: or its ParameterBlock.
template <typename Shard>
absl::StatusOr<v1::ShardFile> WriteNow(Shard& shard, const Cut& cut) {
  CopyBudget none(0);
  return shard.BeginCut(none)->Write(cut, [] { return absl::OkStatus(); });
}

}  // namespace moe::testing
