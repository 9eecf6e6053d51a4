#include "client/shard_map.h"

#include <set>

#include "absl/strings/str_cat.h"

namespace moe {

absl::StatusOr<ShardMap> MakeShardMap(const v1::ClusterState& state,
                                      const ModelPlan& plan) {
  std::map<std::string, std::string> address;
  for (const v1::ServerAddress& server : state.servers()) {
    address[server.server()] = server.address();
  }
  std::map<std::string, std::string> host;
  std::map<std::string, int32_t> index;
  for (const v1::ShardPlacement& shard : state.placement().shards()) {
    if (!host.emplace(shard.shard(), shard.server()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("the placement names shard ", shard.shard(), " twice"));
    }
    index[shard.server()] = 0;
  }

  ShardMap map;
  std::set<std::string> workers;
  for (const v1::ReplicaAssignment& replica : state.replicas()) {
    workers.insert(replica.worker());
  }
  map.workers = static_cast<int64_t>(workers.size());
  for (auto& [server, position] : index) {
    const auto found = address.find(server);
    if (found == address.end()) {
      return absl::InvalidArgumentError(absl::StrCat("no address for ", server));
    }
    position = static_cast<int32_t>(map.servers.size());
    map.servers.push_back({.id = server, .address = found->second, .shards = {}});
  }
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    const ShardSpec& shard = plan.shards[i];
    const auto found = host.find(shard.id);
    if (found == host.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the placement doesn't name shard ", shard.id));
    }
    const int32_t server = index.at(found->second);
    map.servers[server].shards.push_back(static_cast<int32_t>(i));
    map.server_of_shard.push_back(server);
    if (shard.kind == ShardKind::kExpert) {
      // The plan has a layer's groups in ascending order.
      ExpertLayout& layout =
          map.layouts[{static_cast<uint32_t>(shard.layer), shard.mixture}];
      layout.experts += shard.experts;
      layout.groups += 1;
      layout.hierarchical = shard.gate_tensors > 0;
      layout.server_of_group.push_back(server);
    }
  }
  if (host.size() != plan.shards.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the placement names ", host.size(),
                                                   " shards, but the job has ",
                                                   plan.shards.size()));
  }
  for (const Mixture& mixture : MixturesOf(state.job())) {
    ExpertLayout& layout = map.layouts.at(mixture.id);
    layout.in = mixture.in;
    layout.out = mixture.out;
    layout.servers = static_cast<int32_t>(map.servers.size());
    if (layout.hierarchical) layout.k = mixture.moe.k();
  }
  return map;
}

}  // namespace moe
