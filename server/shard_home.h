// What the shards of a server share, and how they come to be. Outlives the generations.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/job.pb.h"
#include "server/activation_budget.h"
#include "server/capacity_tier.h"
#include "server/copy_budget.h"
#include "server/shard.h"

namespace moe {

// By id.
using ShardStock = std::map<std::string, std::unique_ptr<Shard>>;

class ShardHome {
 public:
  struct Limits {
    // Where experts live; none: in memory.
    std::optional<CapacityTier::Options> tier;
    // As ActivationBudget's.
    int64_t activation_bytes = 0;
    // Of copies for a cut that is being written; as CopyBytes() takes it.
    int64_t copy_bytes = 0;
  };

  // The backend outlives the home, and the home its shards. An error is that of the tier.
  static absl::StatusOr<std::unique_ptr<ShardHome>> Create(Backend& backend,
                                                           const Limits& limits);

  // The shard, without any values yet. One thread at a time.
  absl::StatusOr<std::unique_ptr<Shard>> Make(const ModelPlan& plan,
                                              const ShardSpec& spec, const v1::Job& job);

  // For cuts of these shards.
  std::unique_ptr<CopyBudget> MakeCopyBudget(const v1::Job& job, const ModelPlan& plan,
                                             std::span<const ShardSpec> shards) const;

  Backend& backend() { return backend_; }
  // Null if experts are in memory.
  const CapacityTier* tier() const { return tier_.get(); }

 private:
  ShardHome(Backend& backend, const Limits& limits)
      : backend_(backend),
        activations_(limits.activation_bytes),
        copy_bytes_(limits.copy_bytes) {}

  Backend& backend_;
  std::unique_ptr<CapacityTier> tier_;
  ActivationBudget activations_;
  const int64_t copy_bytes_;
};

}  // namespace moe
