// All shards that a server hosts in one generation. Engine thread only, except where
// said.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job/mixtures.h"
#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/parameter.pb.h"
#include "proto/moe/v1/status.pb.h"
#include "server/activation_budget.h"
#include "server/capacity_tier.h"
#include "server/copy_budget.h"
#include "server/dense_shard.h"
#include "server/expert_layer.h"
#include "server/frames.h"
#include "server/replica_shard.h"
#include "server/shard.h"
#include "server/shard_cut.h"
#include "server/table_frames.h"
#include "server/table_shard.h"

namespace moe {

class ShardSet {
 public:
  struct Limits {
    // Where experts live; none: in memory.
    std::optional<CapacityTier::Options> tier;
    // As ActivationBudget's.
    int64_t activation_bytes = 0;
    // Of copies for a cut that is being written; as CopyBytes() takes it.
    int64_t copy_bytes = 0;
  };

  // The shards that state.placement gives to `server`: restored, or with initial values
  // if the state names no checkpoint.
  static absl::StatusOr<std::unique_ptr<ShardSet>> Load(Backend& backend,
                                                        const v1::ClusterState& state,
                                                        const std::string& server,
                                                        const Limits& limits);

  // ---- constant after Load; any thread
  // Of all kinds.
  int64_t size() const { return static_cast<int64_t>(all_.size()); }
  // Null if no group of the mixture is here.
  const LayerShape* FindMixture(MixtureId mixture) const;
  // Floats of each dense shard.
  const std::map<std::string, int64_t>& dense_sizes() const { return dense_sizes_; }
  // Hosted replica shards of these replicas.
  std::vector<std::string> ReplicaShardsOf(std::span<const uint32_t> replicas) const;
  const TableShapes& table_shapes() const { return table_shapes_; }
  // Those with groups here, ascending.
  std::vector<MixtureId> mixtures() const;
  // Whether the whole shard may be pulled.
  bool Pullable(const std::string& shard) const;
  // Null if experts are in memory.
  const CapacityTier* tier() const { return tier_.get(); }
  // For cuts that are being written.
  CopyBudget& copies() const { return *copies_; }
  int64_t d_model() const { return d_model_; }
  int64_t vocabulary() const { return vocabulary_; }
  // The shards of the softmax's table, by rows.
  const std::vector<const TableShard*>& softmax() const { return softmax_; }

  // ---- in a step
  ExpertLayer& mixture(MixtureId mixture) { return *mixtures_.at(mixture); }
  std::string Content(const std::string& shard) const;
  // Rows of a table shard, which counts them as pulled.
  std::string Rows(const std::string& shard, std::span<const int32_t> index,
                   bool evaluation) const;

  // ---- the end of a step
  // closes: [R]; replicas of one worker share theirs.
  absl::Status Close(std::span<const std::shared_ptr<const CloseInput>> closes);
  std::vector<v1::TensorSquareSum> SquareSums();
  void Apply(double rate, double scale);

  // As Shard's; of each shard.
  std::vector<std::shared_ptr<ShardCut>> BeginCut();
  // shard: below size().
  std::vector<v1::TensorDigest> Digests(int64_t shard) const {
    return all_[shard]->Digests();
  }
  std::vector<v1::UntouchedTensors> Untouched(int64_t shard) const {
    return all_[shard]->Untouched();
  }
  std::vector<v1::ShardStatus> Status() const;

 private:
  explicit ShardSet(const Limits& limits) : activations_(limits.activation_bytes) {}
  TableShard& table(const std::string& shard) const;

  // First, so that they outlive the shards.
  std::unique_ptr<CapacityTier> tier_;
  ActivationBudget activations_;
  std::unique_ptr<CopyBudget> copies_;
  // In the plan's order.
  std::vector<Shard*> all_;
  std::map<std::string, std::unique_ptr<DenseShard>> dense_;
  std::map<std::string, std::unique_ptr<ReplicaShard>> replica_;
  std::map<MixtureId, std::unique_ptr<ExpertLayer>> mixtures_;
  // Embedding and softmax; by rows within each.
  std::vector<std::unique_ptr<TableShard>> tables_;
  std::vector<const TableShard*> softmax_;  // of tables_
  std::map<std::string, int64_t> dense_sizes_;
  TableShapes table_shapes_;
  int64_t d_model_ = 0;
  int64_t vocabulary_ = 0;
};

}  // namespace moe
