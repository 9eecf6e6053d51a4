#include "client/remote_parameters.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/remote_tables.h"
#include "common/base/status_macros.h"
#include "common/tensor/replica_tree.h"
#include "glog/logging.h"

namespace moe {

using Case = v1::ExchangeRequest;

RemoteParameters::RemoteParameters(ServerSet& servers, const ModelPlan& plan,
                                   std::vector<uint32_t> owned_replicas,
                                   uint32_t replicas, double clip_norm)
    : servers_(servers),
      plan_(plan),
      owned_replicas_(std::move(owned_replicas)),
      replicas_(replicas),
      clip_norm_(clip_norm) {
  for (size_t i = 0; i < plan_.shards.size(); ++i) {
    if (plan_.shards[i].kind == ShardKind::kDense)
      dense_shards_.push_back(static_cast<int32_t>(i));
  }
}

absl::Status RemoteParameters::SendPull(uint64_t version, int32_t shard) {
  v1::ExchangeRequest request;
  request.mutable_pull()->set_version(version);
  request.mutable_pull()->add_shards(plan_.shards[shard].id);
  return servers_.SendToOne(shard, request, &asked_[shard]);
}

absl::StatusOr<std::string> RemoteParameters::AwaitPull(uint64_t version, int32_t shard,
                                                        absl::Time deadline) {
  ExchangeKey key = StepKey(Case::kPull, version);
  key.shard = plan_.shards[shard].id;
  const int32_t server = asked_.at(shard);
  ASSIGN_OR_RETURN(std::optional<Received<v1::ExchangeResponse>> received,
                   servers_.Await(server, key, deadline));
  if (!received.has_value()) {
    RETURN_IF_ERROR(SendPull(version, shard));
    return AwaitPull(version, shard, servers_.Deadline());
  }
  v1::ExchangeResponse& response = received->message;
  if (response.pull().shards_size() != 1) {
    return absl::InternalError(
        absl::StrFormat("%s answered %s with %d shards", servers_.streams[server]->peer(),
                        Describe(key), response.pull().shards_size()));
  }
  return std::move(*response.mutable_pull()->mutable_shards(0)->mutable_content());
}

absl::Status RemoteParameters::PullDense(uint64_t version,
                                         std::span<const std::span<float>> shards) {
  CHECK_EQ(shards.size(), dense_shards_.size());
  const absl::Time deadline = servers_.Deadline();
  // One request a shard, so that no message grows with the model.
  for (const int32_t shard : dense_shards_) RETURN_IF_ERROR(SendPull(version, shard));
  for (size_t i = 0; i < shards.size(); ++i) {
    const int32_t shard = dense_shards_[i];
    ASSIGN_OR_RETURN(const std::string content, AwaitPull(version, shard, deadline));
    if (content.size() != shards[i].size_bytes()) {
      return absl::InternalError(
          absl::StrFormat("%s sent %d bytes for shard %s instead of %d",
                          servers_.streams[asked_.at(shard)]->peer(), content.size(),
                          plan_.shards[shard].id, shards[i].size_bytes()));
    }
    std::memcpy(shards[i].data(), content.data(), content.size());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> RemoteParameters::PullReplicaState(uint64_t version,
                                                               uint32_t replica) {
  for (size_t i = 0; i < plan_.shards.size(); ++i) {
    if (plan_.shards[i].kind != ShardKind::kReplica || plan_.shards[i].replica != replica)
      continue;
    const int32_t shard = static_cast<int32_t>(i);
    RETURN_IF_ERROR(SendPull(version, shard));
    return AwaitPull(version, shard, servers_.Deadline());
  }
  return absl::InvalidArgumentError(absl::StrCat("the job has no replica ", replica));
}

std::vector<v1::CloseRequest> RemoteParameters::MakeCloseRequests(StepClose close) const {
  std::vector<v1::CloseRequest> requests(servers_.map.servers.size());
  for (v1::CloseRequest& request : requests) {
    request.mutable_replicas()->Add(owned_replicas_.begin(), owned_replicas_.end());
  }
  CHECK_EQ(close.gradients.size(), owned_replicas_.size());
  CHECK_EQ(close.replica_states.size(), owned_replicas_.size());

  for (size_t i = 0; i < dense_shards_.size(); ++i) {
    const int32_t shard = dense_shards_[i];
    const ShardSpec& spec = plan_.shards[shard];
    TreeReduction reduction(replicas_, plan_.SizeOf(spec));
    for (const uint32_t replica : owned_replicas_) {
      std::vector<std::vector<float>>& gradients = close.gradients.at(replica);
      CHECK_EQ(gradients.size(), dense_shards_.size());
      const absl::Status added = reduction.Add({0, replica}, std::move(gradients[i]));
      CHECK(added.ok()) << spec.id << ": " << added;
    }
    for (auto& [node, sum] : reduction.TakeNodes()) {
      for (const int32_t server : servers_.HostsOf(shard)) {
        v1::GradientNode& gradient = *requests[server].add_gradients();
        gradient.set_shard(spec.id);
        gradient.set_level(node.level);
        gradient.set_index(node.index);
        gradient.set_gradient(sum.data(), sum.size() * sizeof(float));
      }
    }
  }

  AddRowGradients(servers_, plan_, Table::kEmbedding, replicas_,
                  close.embedding_gradients, requests);
  AddRowGradients(servers_, plan_, Table::kSoftmax, replicas_, close.softmax_gradients,
                  requests);

  for (size_t i = 0; i < plan_.shards.size(); ++i) {
    const ShardSpec& spec = plan_.shards[i];
    if (spec.kind != ShardKind::kReplica) continue;
    const auto state = close.replica_states.find(spec.replica);
    if (state == close.replica_states.end()) continue;
    for (const int32_t server : servers_.HostsOf(static_cast<int32_t>(i))) {
      v1::ShardContent& content = *requests[server].add_replica_states();
      content.set_shard(spec.id);
      content.set_content(state->second);
    }
  }
  return requests;
}

absl::StatusOr<double> RemoteParameters::GradientNorm(
    std::span<const std::optional<v1::CloseResponse>> responses) const {
  // By position in the logical order: in that order they are added.
  std::map<uint64_t, double> sums;
  for (size_t s = 0; s < responses.size(); ++s) {
    if (!responses[s].has_value()) continue;
    const std::string& peer = servers_.streams[s]->peer();
    std::map<uint64_t, double> of_server;
    for (const v1::TensorSquareSum& sum : responses[s]->square_sums()) {
      if (!of_server.emplace(sum.tensor(), sum.sum()).second) {
        return absl::InternalError(
            absl::StrFormat("%s sent two square sums of tensor %d", peer, sum.tensor()));
      }
    }
    for (const int32_t shard : servers_.map.servers[s].shards) {
      for (const int64_t tensor : plan_.shards[shard].tensors) {
        const auto sum = of_server.extract(static_cast<uint64_t>(tensor));
        if (sum.empty()) {
          // An expert without rows in the step has no gradient.
          if (plan_.shards[shard].kind == ShardKind::kExpert) continue;
          return absl::InternalError(absl::StrFormat("%s sent no square sum of tensor %s",
                                                     peer, plan_.tensors[tensor].name));
        }
        if (sum.mapped() < 0) {
          return absl::InternalError(
              absl::StrFormat("%s sent the square sum %g of tensor %s", peer,
                              sum.mapped(), plan_.tensors[tensor].name));
        }
        if (!std::isfinite(sum.mapped())) {
          return absl::FailedPreconditionError(absl::StrFormat(
              "the gradient of %s is not finite", plan_.tensors[tensor].name));
        }
        const auto [first, added] = sums.emplace(tensor, sum.mapped());
        if (added || first->second == sum.mapped()) continue;
        return absl::InternalError(absl::StrFormat(
            "%s sent the square sum %.17g of tensor %s, and the other server that has "
            "it %.17g: their copies differ",
            peer, sum.mapped(), plan_.tensors[tensor].name, first->second));
      }
    }
    if (!of_server.empty()) {
      return absl::InternalError(
          absl::StrFormat("%s sent a square sum of tensor %d, which it doesn't host",
                          peer, of_server.begin()->first));
    }
  }
  double total = 0;
  for (const auto& [_, sum] : sums) total += sum;
  return std::sqrt(total);
}

absl::StatusOr<StepClosed> RemoteParameters::Close(StepClose close) {
  const uint64_t step = close.step;
  const double learning_rate = close.learning_rate;
  const bool cut = close.cut;
  const bool patient = close.cut_under_way;
  std::vector<v1::CloseRequest> requests = MakeCloseRequests(std::move(close));
  const bool clips = clip_norm_ > 0;
  // Whoever applies the step may have to wait for its disk.
  absl::Time deadline = patient && !clips ? servers_.CutDeadline() : servers_.Deadline();
  const int32_t count = static_cast<int32_t>(requests.size());
  for (int32_t s = 0; s < count; ++s) {
    v1::ExchangeRequest request;
    *request.mutable_close() = std::move(requests[s]);
    request.mutable_close()->set_step(step);
    request.mutable_close()->set_learning_rate(learning_rate);
    request.mutable_close()->set_cut(cut);
    RETURN_IF_ERROR(servers_.Send(s, std::move(request)));
  }

  const auto expect_version = [&](int32_t server, uint64_t version, uint64_t expected) {
    if (version == expected) return absl::OkStatus();
    return absl::InternalError(
        absl::StrFormat("%s is at version %d after the close of step %d, not at %d",
                        servers_.streams[server]->peer(), version, step, expected));
  };
  std::vector<std::optional<v1::CloseResponse>> responses(count);
  int32_t first = count;  // that has answered
  for (int32_t s = 0; s < count; ++s) {
    ASSIGN_OR_RETURN(std::optional<Received<v1::ExchangeResponse>> received,
                     servers_.Await(s, StepKey(Case::kClose, step), deadline));
    if (!received.has_value()) continue;
    v1::ExchangeResponse& response = received->message;
    RETURN_IF_ERROR(
        expect_version(s, response.close().version(), clips ? step : step + 1));
    responses[s] = std::move(*response.mutable_close());
    first = std::min(first, s);
  }
  StepClosed closed;
  closed.cut = responses.at(first)->cut();
  for (int32_t s = 0; s < count; ++s) {
    if (!responses[s].has_value()) continue;
    if (responses[s]->cut() == closed.cut && responses[s]->cut() <= cut) continue;
    return absl::InternalError(absl::StrFormat(
        "%s and %s don't agree about the cut of step %d", servers_.streams[first]->peer(),
        servers_.streams[s]->peer(), step));
  }
  if (!clips) return closed;

  ASSIGN_OR_RETURN(closed.gradient_norm, GradientNorm(responses));
  deadline = patient ? servers_.CutDeadline() : servers_.Deadline();
  for (int32_t s = 0; s < count; ++s) {
    v1::ExchangeRequest request;
    request.mutable_apply()->set_step(step);
    request.mutable_apply()->set_scale(
        closed.gradient_norm > clip_norm_ ? clip_norm_ / closed.gradient_norm : 1.0);
    RETURN_IF_ERROR(servers_.Send(s, std::move(request)));
  }
  for (int32_t s = 0; s < count; ++s) {
    ASSIGN_OR_RETURN(const std::optional<Received<v1::ExchangeResponse>> received,
                     servers_.Await(s, StepKey(Case::kApply, step), deadline));
    if (!received.has_value()) continue;
    RETURN_IF_ERROR(expect_version(s, received->message.apply().version(), step + 1));
  }
  return closed;
}

}  // namespace moe
