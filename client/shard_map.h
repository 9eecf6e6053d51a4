// Which server hosts which shard, in the form that the clients need.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/routing_plan.h"
#include "common/job/mixtures.h"
#include "common/job/model_plan.h"
#include "proto/moe/v1/coordinator.pb.h"

namespace moe {

struct ShardMap {
  struct Server {
    // Member id, and where it listens.
    std::string id;
    std::string address;
    // Of which it has a copy: positions in ModelPlan.shards, ascending.
    std::vector<int32_t> shards;
  };
  static constexpr int32_t kNone = -1;
  // Every server that hosts a shard, by id.
  std::vector<Server> servers;
  // How many workers share the servers.
  int64_t workers = 0;
  // [shards of the plan]: index into servers; of the second copy, kNone where there is none.
  std::vector<int32_t> server_of_shard;
  std::vector<int32_t> standby_of_shard;
  // Servers that have a copy of the shard, the first copy first.
  std::vector<int32_t> CopiesOf(int32_t shard) const;
  // For each mixture of experts.
  std::map<MixtureId, ExpertLayout> layouts;
};

// INVALID_ARGUMENT unless the placement names every shard of the plan once and nothing
// else, its copies are on different servers, and every server of the placement has an address.
absl::StatusOr<ShardMap> MakeShardMap(const v1::ClusterState& state,
                                      const ModelPlan& plan);

}  // namespace moe
