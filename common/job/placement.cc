#include "common/job/placement.h"

#include <glog/logging.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <tuple>
#include <utility>

namespace moe {

namespace {

constexpr size_t kNowhere = std::numeric_limits<size_t>::max();

// Deals out shards to servers, both by their numbers.
class Dealer {
 public:
  Dealer(const ModelPlan& plan, size_t servers)
      : plan_(plan),
        server_of_(plan.shards.size(), kNowhere),
        parameters_(servers),
        held_(servers) {
    // Shards that compete for the same phase of a step: by kind, expert shards by mixture, table
    // shards by table.
    std::map<std::tuple<ShardKind, int32_t, uint32_t, Table>, std::vector<size_t>>
        classes;
    for (size_t i = 0; i < plan.shards.size(); ++i) {
      const ShardSpec& shard = plan.shards[i];
      classes[{shard.kind, shard.layer, shard.mixture, shard.table}].push_back(i);
    }
    for (auto& [unused, shards] : classes) {
      std::stable_sort(shards.begin(), shards.end(), [&](size_t a, size_t b) {
        return plan.SizeOf(plan.shards[a]) > plan.SizeOf(plan.shards[b]);
      });
      classes_.push_back(std::move(shards));
    }
  }

  // present: where each shard is, kNowhere if it needs a place. settled: whose second copies are right
  // if they stay there, so that others move rather than they.
  std::vector<size_t> Deal(const std::vector<size_t>& present,
                           const std::vector<bool>& settled) {
    for (const std::vector<size_t>& shards : classes_) Keep(shards, present, settled);
    for (const std::vector<size_t>& shards : classes_) DealRest(shards);
    return server_of_;
  }

 private:
  size_t servers() const { return held_.size(); }

  void Give(size_t shard, size_t server) {
    server_of_[shard] = server;
    ++held_[server];
    parameters_[server] += plan_.SizeOf(plan_.shards[shard]);
  }

  // Leaves each server of its shards of a class as many as it may have.
  void Keep(const std::vector<size_t>& shards, const std::vector<size_t>& present,
            const std::vector<bool>& settled) {
    std::vector<size_t> has(servers());
    for (size_t shard : shards) {
      if (present[shard] != kNowhere) ++has[present[shard]];
    }
    // Where the class doesn't divide, those have one more that had most.
    std::vector<size_t> by_number(servers());
    std::iota(by_number.begin(), by_number.end(), size_t{0});
    std::stable_sort(by_number.begin(), by_number.end(),
                     [&](size_t a, size_t b) { return has[a] > has[b]; });
    std::vector<size_t> quota(servers(), shards.size() / servers());
    for (size_t i = 0; i < shards.size() % servers(); ++i) ++quota[by_number[i]];
    std::vector<size_t> kept(servers());
    for (const bool first : {true, false}) {
      for (size_t shard : shards) {
        const size_t server = present[shard];
        if (server == kNowhere || settled[shard] != first ||
            kept[server] == quota[server]) {
          continue;
        }
        ++kept[server];
        Give(shard, server);
      }
    }
  }

  // Largest first, each to the server that has fewest of the class.
  void DealRest(const std::vector<size_t>& shards) {
    std::vector<size_t> held_of_class(servers());
    for (size_t shard : shards) {
      if (server_of_[shard] != kNowhere) ++held_of_class[server_of_[shard]];
    }
    for (size_t shard : shards) {
      if (server_of_[shard] != kNowhere) continue;
      size_t best = 0;
      for (size_t s = 1; s < servers(); ++s) {
        if (std::tie(held_of_class[s], parameters_[s], held_[s]) <
            std::tie(held_of_class[best], parameters_[best], held_[best])) {
          best = s;
        }
      }
      ++held_of_class[best];
      Give(shard, best);
    }
  }

  const ModelPlan& plan_;
  std::vector<std::vector<size_t>> classes_;  // each: largest first
  std::vector<size_t> server_of_;             // by shard
  std::vector<int64_t> parameters_;           // by server
  std::vector<size_t> held_;                  // by server
};

v1::Placement Place(const ModelPlan& plan, const std::vector<std::string>& servers,
                    const std::vector<size_t>& present, const std::vector<bool>& settled,
                    int copies) {
  CHECK(!servers.empty());
  CHECK(copies == 1 || copies == 2) << copies;
  const std::vector<size_t> server_of =
      Dealer(plan, servers.size()).Deal(present, settled);
  v1::Placement placement;
  placement.set_version(1);
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    v1::ShardPlacement* shard = placement.add_shards();
    shard->set_shard(plan.shards[i].id);
    shard->set_server(servers[server_of[i]]);
    if (copies == 1 || servers.size() == 1) continue;
    shard->set_standby(servers[(server_of[i] + 1) % servers.size()]);
  }
  return placement;
}

}  // namespace

v1::Placement MakePlacement(const ModelPlan& plan,
                            const std::vector<std::string>& servers, int copies) {
  const size_t shards = plan.shards.size();
  return Place(plan, servers, std::vector<size_t>(shards, kNowhere),
               std::vector<bool>(shards), copies);
}

v1::Placement MovePlacement(const ModelPlan& plan, const v1::Placement& present,
                            const std::vector<std::string>& servers, int copies) {
  CHECK_EQ(present.shards_size(), static_cast<int>(plan.shards.size()));
  std::vector<size_t> at;
  std::vector<bool> settled;
  for (const v1::ShardPlacement& shard : present.shards()) {
    std::vector<size_t> hosts;  // that stay
    for (const std::string& host : HostsOf(shard)) {
      const auto found = std::find(servers.begin(), servers.end(), host);
      if (found != servers.end()) hosts.push_back(found - servers.begin());
    }
    at.push_back(hosts.empty() ? kNowhere : hosts[0]);
    settled.push_back(hosts.size() == 2 && hosts[1] == (hosts[0] + 1) % servers.size());
  }
  v1::Placement placement = Place(plan, servers, at, settled, copies);
  placement.set_version(present.version() + 1);
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

std::vector<std::string> HostsOf(const v1::ShardPlacement& placed) {
  std::vector<std::string> hosts = {placed.server()};
  if (!placed.standby().empty()) hosts.push_back(placed.standby());
  return hosts;
}

bool CanSpare(const v1::Placement& placement, const std::string& server) {
  return std::all_of(placement.shards().begin(), placement.shards().end(),
                     [&](const v1::ShardPlacement& placed) {
                       return placed.server() != server || !placed.standby().empty();
                     });
}

v1::Placement Without(v1::Placement placement, const std::string& server) {
  CHECK(CanSpare(placement, server)) << server;
  for (v1::ShardPlacement& placed : *placement.mutable_shards()) {
    if (placed.server() == server) {
      placed.set_server(placed.standby());
    } else if (placed.standby() != server) {
      continue;
    }
    placed.clear_standby();
  }
  return placement;
}

std::set<std::string> ShardsOf(const v1::Placement& placement,
                               const std::string& server) {
  std::set<std::string> shards;
  for (const v1::ShardPlacement& placed : placement.shards()) {
    if (placed.server() == server || placed.standby() == server) {
      shards.insert(placed.shard());
    }
  }
  return shards;
}

std::map<std::string, std::vector<ShardSpec>> ShardsByServer(
    const ModelPlan& plan, const v1::Placement& placement) {
  std::map<std::string, std::vector<ShardSpec>> shards;
  for (int i = 0; i < placement.shards_size(); ++i) {
    for (const std::string& host : HostsOf(placement.shards(i))) {
      shards[host].push_back(plan.shards[i]);
    }
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
