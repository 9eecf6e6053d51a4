#include "client/shard_map.h"

#include <set>

#include "absl/strings/str_cat.h"
#include "common/job/placement.h"

namespace moe {

std::vector<int32_t> ShardMap::CopiesOf(int32_t shard) const {
  std::vector<int32_t> copies = {server_of_shard[shard]};
  if (!standby_of_shard.empty() && standby_of_shard[shard] != kNone) {
    copies.push_back(standby_of_shard[shard]);
  }
  return copies;
}

absl::StatusOr<ShardMap> MakeShardMap(const v1::ClusterState& state,
                                      const ModelPlan& plan) {
  std::map<std::string, std::string> address;
  for (const v1::ServerAddress& server : state.servers()) {
    address[server.server()] = server.address();
  }
  std::map<std::string, const v1::ShardPlacement*> placed;
  std::map<std::string, int32_t> index;
  for (const v1::ShardPlacement& shard : state.placement().shards()) {
    if (!placed.emplace(shard.shard(), &shard).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("the placement names shard ", shard.shard(), " twice"));
    }
    if (shard.server() == shard.standby()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the placement has both copies of ", shard.shard(), " on ", shard.server()));
    }
    for (const std::string& server : HostsOf(shard)) index[server] = 0;
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
    const auto found = placed.find(shard.id);
    if (found == placed.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the placement doesn't name shard ", shard.id));
    }
    for (const std::string& host : HostsOf(*found->second)) {
      map.servers[index.at(host)].shards.push_back(static_cast<int32_t>(i));
    }
    const std::string& second = found->second->standby();
    const int32_t server = index.at(found->second->server());
    const int32_t standby = second.empty() ? ShardMap::kNone : index.at(second);
    map.server_of_shard.push_back(server);
    map.standby_of_shard.push_back(standby);
    if (shard.kind == ShardKind::kExpert) {
      // The plan has a layer's groups in ascending order.
      ExpertLayout& layout =
          map.layouts[{static_cast<uint32_t>(shard.layer), shard.mixture}];
      layout.experts += shard.experts;
      layout.groups += 1;
      layout.hierarchical = shard.gate_tensors > 0;
      layout.server_of_group.push_back(server);
      layout.standby_of_group.push_back(standby);
    }
  }
  if (placed.size() != plan.shards.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the placement names ", placed.size(),
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
