#include "server/shard_set.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/manifest.h"
#include "common/job/placement.h"
#include "glog/logging.h"
#include "server/shard_file.h"

namespace moe {

namespace {

// A shard of a kind that is known from its id.
template <typename Kind>
std::unique_ptr<Kind> As(std::unique_ptr<Shard> shard) {
  return std::unique_ptr<Kind>(static_cast<Kind*>(shard.release()));
}

// Puts what the stock lacks of these shards into it.
absl::Status Complete(ShardHome& home, const v1::ClusterState& state,
                      const ModelPlan& plan, const std::vector<const ShardSpec*>& mine,
                      ShardStock& stock) {
  v1::Manifest manifest;
  if (!state.restore_from().empty()) {
    ASSIGN_OR_RETURN(manifest, ReadManifest(state.restore_from()));
  }
  for (const ShardSpec* spec : mine) {
    std::unique_ptr<Shard>& shard = stock[spec->id];
    if (shard != nullptr) continue;
    if (state.has_handover()) {
      return absl::UnavailableError(
          absl::StrCat(spec->id, ", which the generation before this one had at step ",
                       state.handover().step(), ", isn't here"));
    }
    ASSIGN_OR_RETURN(shard, home.Make(plan, *spec, state.job()));
    if (state.restore_from().empty()) {
      shard->Initialize();
      continue;
    }
    ASSIGN_OR_RETURN(
        const std::unique_ptr<SafetensorsFile> file,
        OpenShardFile(state.restore_from(), manifest, spec->id, state.start_step()));
    RETURN_IF_ERROR(shard->Restore(*file));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ShardSet>> ShardSet::Load(std::shared_ptr<ShardHome> home,
                                                         const v1::ClusterState& state,
                                                         const std::string& server,
                                                         ShardStock& stock) {
  const v1::Job& job = state.job();
  const ModelPlan plan = MakeModelPlan(job);
  std::set<std::string> placed_here = ShardsOf(state.placement(), server);
  std::vector<const ShardSpec*> mine;
  for (const ShardSpec& spec : plan.shards) {
    if (placed_here.erase(spec.id) > 0) mine.push_back(&spec);
  }
  if (!placed_here.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("placement ", state.placement().version(), " gives ", server,
                     " shard ", *placed_here.begin(), ", which the job doesn't have"));
  }
  RETURN_IF_ERROR(Complete(*home, state, plan, mine, stock));

  std::unique_ptr<ShardSet> set(new ShardSet(std::move(home)));
  set->d_model_ = job.model().d_model();
  set->vocabulary_ = job.model().vocabulary();
  std::map<MixtureId, std::vector<std::unique_ptr<ExpertShard>>> groups;
  std::vector<ShardSpec> hosted;
  for (const ShardSpec* spec : mine) {
    hosted.push_back(*spec);
    std::unique_ptr<Shard> shard = std::move(stock.extract(spec->id).mapped());
    set->all_.push_back(shard.get());
    switch (spec->kind) {
      case ShardKind::kDense: {
        auto dense = As<DenseShard>(std::move(shard));
        set->dense_sizes_[spec->id] = dense->size();
        set->dense_[spec->id] = std::move(dense);
        break;
      }
      case ShardKind::kTable: {
        auto table = As<TableShard>(std::move(shard));
        set->table_shapes_[spec->id] = {table->rows(), table->columns()};
        if (spec->table == Table::kSoftmax) set->softmax_.push_back(table.get());
        set->tables_.push_back(std::move(table));
        break;
      }
      case ShardKind::kExpert:
        groups[{static_cast<uint32_t>(spec->layer), spec->mixture}].push_back(
            As<ExpertShard>(std::move(shard)));
        break;
      case ShardKind::kReplica:
        set->replica_[spec->id] = As<ReplicaShard>(std::move(shard));
        break;
    }
  }
  set->copies_ = set->home_->MakeCopyBudget(job, plan, hosted);
  Backend& backend = set->home_->backend();
  for (const Mixture& mixture : MixturesOf(job)) {
    const auto shards = groups.find(mixture.id);
    if (shards == groups.end()) continue;
    set->mixtures_[mixture.id] =
        std::make_unique<ExpertLayer>(backend, mixture, std::move(shards->second));
  }
  return set;
}

ShardStock ShardSet::Release() {
  ShardStock stock;
  for (auto& [id, shard] : dense_) stock[id] = std::move(shard);
  for (auto& [id, shard] : replica_) stock[id] = std::move(shard);
  for (auto& shard : tables_) {
    const std::string id = shard->spec().id;
    stock[id] = std::move(shard);
  }
  for (auto& [mixture, layer] : mixtures_) {
    for (std::unique_ptr<ExpertShard>& shard : layer->Release()) {
      const std::string id = shard->spec().id;
      stock[id] = std::move(shard);
    }
  }
  all_.clear();
  dense_.clear();
  replica_.clear();
  tables_.clear();
  mixtures_.clear();
  return stock;
}

const Shard* ShardSet::Find(const std::string& id) const {
  const auto found = std::find_if(all_.begin(), all_.end(), [&](const Shard* shard) {
    return shard->spec().id == id;
  });
  return found == all_.end() ? nullptr : *found;
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

absl::Status ShardSet::Close(
    std::span<const std::shared_ptr<const CloseInput>> closes,
    const std::function<void(uint32_t replica, const CloseInput& close)>& added) {
  std::set<const CloseInput*> seen;
  for (uint32_t r = 0; r < closes.size(); ++r) {
    const auto& close = closes[r];
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
    if (added) added(r, *close);
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
