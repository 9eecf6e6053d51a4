#include "common/job/placement.h"

#include <glog/logging.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

namespace moe {

v1::Placement MakePlacement(const ModelPlan& plan,
                            const std::vector<std::string>& servers) {
  CHECK(!servers.empty());
  // Shards that compete for the same phase of a step: by kind, expert shards by mixture, table
  // shards by table.
  std::map<std::tuple<ShardKind, int32_t, uint32_t, Table>, std::vector<size_t>> classes;
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    const ShardSpec& shard = plan.shards[i];
    classes[{shard.kind, shard.layer, shard.mixture, shard.table}].push_back(i);
  }

  std::vector<size_t> server_of(plan.shards.size());
  std::vector<int64_t> parameters(servers.size());
  std::vector<size_t> held(servers.size());
  for (auto& [unused, shards] : classes) {
    std::stable_sort(shards.begin(), shards.end(), [&](size_t a, size_t b) {
      return plan.SizeOf(plan.shards[a]) > plan.SizeOf(plan.shards[b]);
    });
    std::vector<size_t> held_of_class(servers.size());
    for (size_t shard : shards) {
      size_t best = 0;
      for (size_t s = 1; s < servers.size(); ++s) {
        if (std::tie(held_of_class[s], parameters[s], held[s]) <
            std::tie(held_of_class[best], parameters[best], held[best])) {
          best = s;
        }
      }
      server_of[shard] = best;
      ++held_of_class[best];
      ++held[best];
      parameters[best] += plan.SizeOf(plan.shards[shard]);
    }
  }

  v1::Placement placement;
  placement.set_version(1);
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    v1::ShardPlacement* shard = placement.add_shards();
    shard->set_shard(plan.shards[i].id);
    shard->set_server(servers[server_of[i]]);
  }
  return placement;
}

std::vector<v1::ReplicaAssignment> AssignReplicas(
    uint32_t replicas, const std::vector<std::string>& workers) {
  CHECK(!workers.empty());
  CHECK_LE(workers.size(), replicas);
  std::vector<v1::ReplicaAssignment> assignments(replicas);
  for (uint32_t r = 0; r < replicas; ++r) {
    assignments[r].set_replica(r);
    // The w-th range begins at ceil(w * replicas / workers).
    assignments[r].set_worker(workers[uint64_t{r} * workers.size() / replicas]);
  }
  return assignments;
}

std::map<std::string, std::vector<ShardSpec>> ShardsByServer(
    const ModelPlan& plan, const v1::Placement& placement) {
  std::map<std::string, std::vector<ShardSpec>> shards;
  for (int i = 0; i < placement.shards_size(); ++i) {
    shards[placement.shards(i).server()].push_back(plan.shards[i]);
  }
  return shards;
}

std::map<std::string, std::vector<uint32_t>> ReplicasByWorker(
    std::span<const v1::ReplicaAssignment> replicas) {
  std::map<std::string, std::vector<uint32_t>> owned;
  for (const v1::ReplicaAssignment& assignment : replicas) {
    owned[assignment.worker()].push_back(assignment.replica());
  }
  return owned;
}

}  // namespace moe
