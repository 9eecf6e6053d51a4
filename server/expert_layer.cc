#include "server/expert_layer.h"

#include <optional>
#include <utility>

#include "common/base/status_macros.h"
#include "glog/logging.h"

namespace moe {
namespace {

// The matrices one below the other.
Tensor Concatenate(Backend& backend, int64_t width,
                   std::span<const Tensor* const> parts) {
  int64_t rows = 0;
  for (const Tensor* part : parts) rows += part->rows();
  Tensor all(backend, rows, width);
  rows = 0;
  for (const Tensor* part : parts) {
    if (part->rows() == 0) continue;
    backend.Copy(part->data(), all.view().row(rows), part->size() * sizeof(float));
    rows += part->rows();
  }
  return all;
}

}  // namespace

ExpertLayer::ExpertLayer(Backend& backend, const Mixture& mixture,
                         std::vector<std::unique_ptr<ExpertShard>> shards)
    : backend_(backend), shards_(std::move(shards)) {
  CHECK(!shards_.empty());
  shape_.in = mixture.in;
  shape_.out = mixture.out;
  shape_.calls = mixture.calls;
  shape_.experts = mixture.moe.experts();
  shape_.experts_per_group = shards_[0]->spec().experts;
  shape_.hierarchical = shards_[0]->spec().gate_tensors > 0;
  for (const auto& shard : shards_) shape_.groups.push_back(shard->spec().group);
}

absl::StatusOr<std::vector<v1::ForwardReply>> ExpertLayer::Forward(
    v1::Mode mode, uint64_t step, uint32_t wave,
    std::span<const std::shared_ptr<const ForwardInput>> inputs) {
  WaveRows rows;
  std::vector<const Tensor*> parts;
  uint64_t tokens = 0;
  rows.begin.push_back(0);
  for (const auto& input : inputs) {
    parts.push_back(&input->x);
    rows.begin.push_back(rows.begin.back() + input->x.rows());
    rows.token.insert(rows.token.end(), input->token.begin(), input->token.end());
    tokens += input->tokens;
  }
  rows.x = Concatenate(backend_, shape_.in, parts);

  std::vector<std::vector<v1::GroupOutput>> outputs(shards_.size());
  std::vector<absl::Status> statuses(shards_.size());
  const auto keep = [&](int64_t g,
                        absl::StatusOr<std::vector<v1::GroupOutput>> of_group) {
    statuses[g] = of_group.status();
    if (of_group.ok()) outputs[g] = *std::move(of_group);
  };
  backend_.parallel().For(shards_.size(), [&](int64_t g) {
    if (shape_.hierarchical) {
      std::vector<const GroupRows*> chosen;
      for (const auto& input : inputs) chosen.push_back(&input->rows[g]);
      keep(g, shards_[g]->Forward(mode, step, wave, rows, chosen));
    } else {
      std::vector<const GroupPairs*> pairs;
      for (const auto& input : inputs) pairs.push_back(&input->pairs[g]);
      keep(g, shards_[g]->Forward(mode, wave, rows, pairs));
    }
  });
  for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);

  const bool train = mode == v1::MODE_TRAIN;
  if (train) {
    tokens_ = wave == 0 ? tokens : tokens_ + tokens;
    CHECK_EQ(wave, waves_.size());
    waves_.push_back(std::move(rows));
  }
  std::vector<v1::ForwardReply> replies(inputs.size());
  for (size_t r = 0; r < inputs.size(); ++r) {
    replies[r].set_replica(r);
    for (auto& of_group : outputs) {
      if (train) of_group[r].set_tokens(tokens_);
      *replies[r].add_groups() = std::move(of_group[r]);
    }
  }
  return replies;
}

std::vector<v1::BackwardReply> ExpertLayer::Backward(
    uint32_t wave, std::span<const std::shared_ptr<const BackwardInput>> inputs) {
  CHECK_LT(wave, waves_.size());
  WaveRows& rows = waves_[wave];
  std::vector<const Tensor*> parts;
  for (const auto& input : inputs) parts.push_back(&input->dy);
  rows.dy = Concatenate(backend_, shape_.out, parts);

  // The same in all inputs.
  const std::optional<BalanceMoments>& moments = inputs[0]->moments;
  std::vector<std::vector<v1::GroupGradient>> gradients(shards_.size());
  backend_.parallel().For(shards_.size(), [&](int64_t g) {
    gradients[g] = shards_[g]->Backward(wave, rows, moments ? &*moments : nullptr);
  });
  std::vector<v1::BackwardReply> replies(inputs.size());
  for (size_t r = 0; r < inputs.size(); ++r) {
    replies[r].set_replica(r);
    for (auto& of_group : gradients) *replies[r].add_groups() = std::move(of_group[r]);
  }
  return replies;
}

void ExpertLayer::AppendSquareSums(std::vector<v1::TensorSquareSum>* sums) {
  for (const auto& shard : shards_) shard->AppendSquareSums(waves_, sums);
}

void ExpertLayer::Apply(double rate, double scale) {
  backend_.parallel().For(shards_.size(),
                          [&](int64_t g) { shards_[g]->Apply(waves_, rate, scale); });
  waves_.clear();
}

}  // namespace moe
