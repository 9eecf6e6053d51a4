// All shards that a server hosts in one generation. Engine thread only, except where
// said.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job/mixtures.h"
#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/parameter.pb.h"
#include "proto/moe/v1/status.pb.h"
#include "server/capacity_tier.h"
#include "server/copy_budget.h"
#include "server/dense_shard.h"
#include "server/expert_layer.h"
#include "server/frames.h"
#include "server/replica_shard.h"
#include "server/shard.h"
#include "server/shard_cut.h"
#include "server/shard_home.h"
#include "server/table_frames.h"
#include "server/table_shard.h"

namespace moe {

class ShardSet {
 public:
  // The shards that state.placement gives to `server`: out of `stock`, which keeps the others; those
  // that aren't there, unless state.handover says that they must be, restored, or with initial
  // values if the state names no checkpoint.
  static absl::StatusOr<std::unique_ptr<ShardSet>> Load(std::shared_ptr<ShardHome> home,
                                                        const v1::ClusterState& state,
                                                        const std::string& server,
                                                        ShardStock& stock);
  // Its shards; it has none any more. Between steps.
  ShardStock Release();

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
  const CapacityTier* tier() const { return home_->tier(); }
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
  // closes: [R]; replicas of one worker share theirs. added, unless empty, is called with each close
  // that was added, and a replica that it is of.
  absl::Status Close(
      std::span<const std::shared_ptr<const CloseInput>> closes,
      const std::function<void(uint32_t replica, const CloseInput& close)>& added = {});
  std::vector<v1::TensorSquareSum> SquareSums();
  void Apply(double rate, double scale);

  // As Shard's; of each shard.
  std::vector<std::shared_ptr<ShardCut>> BeginCut();
  // Null if it isn't here.
  const Shard* Find(const std::string& id) const;
  // shard: below size().
  std::vector<v1::TensorDigest> Digests(int64_t shard) const {
    return all_[shard]->Digests();
  }
  std::vector<v1::UntouchedTensors> Untouched(int64_t shard) const {
    return all_[shard]->Untouched();
  }
  std::vector<v1::ShardStatus> Status() const;

 private:
  explicit ShardSet(std::shared_ptr<ShardHome> home) : home_(std::move(home)) {}
  TableShard& table(const std::string& shard) const;

  // First, so that they outlive the shards.
  const std::shared_ptr<ShardHome> home_;
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
