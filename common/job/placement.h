// Who holds which shard and who computes which replica: functions of the job, of the members' names and,
// where shards move, of where they were.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "common/job/model_plan.h"
#include "proto/moe/v1/coordinator.pb.h"

namespace moe {

// servers: member ids, ascending, at least one. Of the dense shards, of each layer's
// expert shards and of the replica shards every server gets as many as any other, give or
// take one, and within that as equal a number of parameters as dealing out the largest
// first achieves. Shards in the plan's order.
v1::Placement MakePlacement(const ModelPlan& plan,
                            const std::vector<std::string>& servers);
// As many to each as before, but from where the shards are: none moves that needn't. present: of the
// same plan, on servers that need not be among `servers`.
v1::Placement MovePlacement(const ModelPlan& plan, const v1::Placement& present,
                            const std::vector<std::string>& servers);

// workers: member ids, ascending, at most as many as replicas. Contiguous ranges whose
// lengths differ by at most one. Ascending by replica.
std::vector<v1::ReplicaAssignment> AssignReplicas(
    uint32_t replicas, const std::vector<std::string>& workers);

// The shards that the placement gives to the server.
std::set<std::string> ShardsOf(const v1::Placement& placement, const std::string& server);
// By server, in the plan's order; placement: of all shards of the plan, in that order.
std::map<std::string, std::vector<ShardSpec>> ShardsByServer(
    const ModelPlan& plan, const v1::Placement& placement);
// By worker, in the order given.
std::map<std::string, std::vector<uint32_t>> ReplicasByWorker(
    std::span<const v1::ReplicaAssignment> replicas);

}  // namespace moe
