#include "server/shard_set.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/job/copy_memory.h"
#include "glog/logging.h"
#include "server/shard_file.h"

namespace moe {

absl::StatusOr<std::unique_ptr<ShardSet>> ShardSet::Load(Backend& backend,
                                                         const v1::ClusterState& state,
                                                         const std::string& server,
                                                         const Limits& limits) {
  const v1::Job& job = state.job();
  const ModelPlan plan = MakeModelPlan(job);
  std::set<std::string> mine;
  for (const v1::ShardPlacement& placed : state.placement().shards()) {
    if (placed.server() == server) mine.insert(placed.shard());
  }

  std::unique_ptr<ShardSet> set(new ShardSet(limits));
  set->d_model_ = job.model().d_model();
  set->vocabulary_ = job.model().vocabulary();
  if (limits.tier.has_value()) {
    int64_t bytes = 0;
    for (const ShardSpec& spec : plan.shards) {
      if (mine.contains(spec.id)) bytes += ParameterBlock::AddressBytes(plan, spec, job);
    }
    ASSIGN_OR_RETURN(set->tier_, CapacityTier::Create(*limits.tier, bytes));
  }
  std::map<MixtureId, std::vector<std::unique_ptr<ExpertShard>>> groups;
  std::vector<ShardSpec> hosted;
  for (const ShardSpec& spec : plan.shards) {
    if (mine.erase(spec.id) == 0) continue;
    hosted.push_back(spec);
    switch (spec.kind) {
      case ShardKind::kDense: {
        auto shard = std::make_unique<DenseShard>(backend, plan, spec, job);
        set->all_.push_back(shard.get());
        set->dense_sizes_[spec.id] = shard->size();
        set->dense_[spec.id] = std::move(shard);
        break;
      }
      case ShardKind::kTable: {
        auto shard = std::make_unique<TableShard>(backend, plan, spec, job);
        set->all_.push_back(shard.get());
        set->table_shapes_[spec.id] = {shard->rows(), shard->columns()};
        if (spec.table == Table::kSoftmax) set->softmax_.push_back(shard.get());
        set->tables_.push_back(std::move(shard));
        break;
      }
      case ShardKind::kExpert: {
        auto shard = std::make_unique<ExpertShard>(
            backend, plan, spec, job,
            ExpertShard::Host{set->tier_.get(), &set->activations_});
        set->all_.push_back(shard.get());
        groups[{static_cast<uint32_t>(spec.layer), spec.mixture}].push_back(
            std::move(shard));
        break;
      }
      case ShardKind::kReplica: {
        auto shard = std::make_unique<ReplicaShard>(backend, spec);
        set->all_.push_back(shard.get());
        set->replica_[spec.id] = std::move(shard);
        break;
      }
    }
  }
  if (!mine.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("placement ", state.placement().version(), " gives ", server,
                     " shard ", *mine.begin(), ", which the job doesn't have"));
  }
  set->copies_ = std::make_unique<CopyBudget>(
      CopyBytes(job, plan, hosted, limits.tier.has_value(), limits.copy_bytes));
  for (const Mixture& mixture : MixturesOf(job)) {
    const auto shards = groups.find(mixture.id);
    if (shards == groups.end()) continue;
    set->mixtures_[mixture.id] =
        std::make_unique<ExpertLayer>(backend, mixture, std::move(shards->second));
  }

  for (Shard* shard : set->all_) {
    if (state.restore_from().empty()) {
      shard->Initialize();
      continue;
    }
    ASSIGN_OR_RETURN(
        const std::unique_ptr<SafetensorsFile> file,
        OpenShardFile(state.restore_from(), shard->spec().id, state.start_step()));
    RETURN_IF_ERROR(shard->Restore(*file));
  }
  return set;
}

const LayerShape* ShardSet::FindMixture(MixtureId mixture) const {
  const auto it = mixtures_.find(mixture);
  return it == mixtures_.end() ? nullptr : &it->second->shape();
}

std::vector<std::string> ShardSet::ReplicaShardsOf(
    std::span<const uint32_t> replicas) const {
  std::vector<std::string> shards;
  for (const auto& [id, shard] : replica_) {
    for (uint32_t r : replicas) {
      if (shard->spec().replica == r) shards.push_back(id);
    }
  }
  return shards;
}

std::vector<MixtureId> ShardSet::mixtures() const {
  std::vector<MixtureId> mixtures;
  for (const auto& [mixture, unused] : mixtures_) mixtures.push_back(mixture);
  return mixtures;
}

bool ShardSet::Pullable(const std::string& shard) const {
  return dense_.contains(shard) || replica_.contains(shard);
}

std::string ShardSet::Content(const std::string& shard) const {
  const auto dense = dense_.find(shard);
  return dense != dense_.end() ? dense->second->Content() : replica_.at(shard)->content();
}

TableShard& ShardSet::table(const std::string& shard) const {
  const auto found = std::find_if(tables_.begin(), tables_.end(), [&](const auto& table) {
    return table->spec().id == shard;
  });
  CHECK(found != tables_.end()) << shard;
  return **found;
}

std::string ShardSet::Rows(const std::string& shard, std::span<const int32_t> index,
                           bool evaluation) const {
  table(shard).CountPulled(static_cast<int64_t>(index.size()), evaluation);
  return table(shard).Content(index);
}

absl::Status ShardSet::Close(std::span<const std::shared_ptr<const CloseInput>> closes) {
  std::set<const CloseInput*> seen;
  for (const auto& close : closes) {
    if (!seen.insert(close.get()).second) continue;
    for (const CloseInput::Gradient& gradient : close->gradients) {
      RETURN_IF_ERROR(
          Annotate(dense_.at(gradient.shard)->AddGradient(gradient.node, gradient.sum),
                   gradient.shard));
    }
    for (const RowGradient& gradient : close->row_gradients) {
      RETURN_IF_ERROR(
          Annotate(table(gradient.shard).AddGradient(gradient.node, gradient.sum),
                   gradient.shard));
    }
    for (const auto& [shard, content] : close->replica_states) {
      replica_.at(shard)->Push(content);
    }
  }
  for (const auto& [id, shard] : dense_) CHECK(shard->complete()) << id;
  for (const auto& shard : tables_) CHECK(shard->complete()) << shard->spec().id;
  return absl::OkStatus();
}

std::vector<v1::TensorSquareSum> ShardSet::SquareSums() {
  std::vector<v1::TensorSquareSum> sums;
  for (const auto& [id, shard] : dense_) shard->AppendSquareSums(&sums);
  for (const auto& shard : tables_) shard->AppendSquareSums(&sums);
  for (const auto& [mixture, shards] : mixtures_) shards->AppendSquareSums(&sums);
  return sums;
}

void ShardSet::Apply(double rate, double scale) {
  for (const auto& [id, shard] : dense_) shard->Apply(rate, scale);
  for (const auto& shard : tables_) shard->Apply(rate, scale);
  for (const auto& [mixture, shards] : mixtures_) shards->Apply(rate, scale);
  for (const auto& [id, shard] : replica_) shard->Apply();
}

std::vector<std::shared_ptr<ShardCut>> ShardSet::BeginCut() {
  std::vector<std::shared_ptr<ShardCut>> files;
  for (Shard* shard : all_) files.push_back(shard->BeginCut(*copies_));
  return files;
}

std::vector<v1::ShardStatus> ShardSet::Status() const {
  std::vector<v1::ShardStatus> status(all_.size());
  for (size_t i = 0; i < all_.size(); ++i) all_[i]->FillStatus(&status[i]);
  return status;
}

}  // namespace moe
