#include "server/shard_home.h"

#include "absl/memory/memory.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/job/copy_memory.h"
#include "server/dense_shard.h"
#include "server/expert_shard.h"
#include "server/parameter_block.h"
#include "server/replica_shard.h"
#include "server/table_shard.h"

namespace moe {

absl::StatusOr<std::unique_ptr<ShardHome>> ShardHome::Create(Backend& backend,
                                                             const Limits& limits) {
  auto home = absl::WrapUnique(new ShardHome(backend, limits));
  if (limits.tier.has_value()) {
    ASSIGN_OR_RETURN(home->tier_, CapacityTier::Create(*limits.tier));
  }
  return home;
}

absl::StatusOr<std::unique_ptr<Shard>> ShardHome::Make(const ModelPlan& plan,
                                                       const ShardSpec& spec,
                                                       const v1::Job& job) {
  switch (spec.kind) {
    case ShardKind::kDense:
      return std::make_unique<DenseShard>(backend_, plan, spec, job);
    case ShardKind::kTable:
      return std::make_unique<TableShard>(backend_, plan, spec, job);
    case ShardKind::kExpert:
      if (tier_ != nullptr) {
        RETURN_IF_ERROR(tier_->Extend(ParameterBlock::AddressBytes(plan, spec, job)));
      }
      return std::make_unique<ExpertShard>(backend_, plan, spec, job,
                                           ExpertShard::Host{tier_.get(), &activations_});
    case ShardKind::kReplica:
      return std::make_unique<ReplicaShard>(backend_, spec);
  }
  return absl::InternalError(absl::StrCat(spec.id, " is of no kind"));
}

std::unique_ptr<CopyBudget> ShardHome::MakeCopyBudget(
    const v1::Job& job, const ModelPlan& plan, std::span<const ShardSpec> shards) const {
  return std::make_unique<CopyBudget>(
      CopyBytes(job, plan, shards, tier_ != nullptr, copy_bytes_));
}

}  // namespace moe
