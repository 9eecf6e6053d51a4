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
// copies: of each shard, 1 or 2. The second copies of a server's shards are on the next server, those of
// the last on the first, so that a loss of several costs shards only if two of them are neighbours; a
// class is then even give or take two. One server has one copy of each.
v1::Placement MakePlacement(const ModelPlan& plan,
                            const std::vector<std::string>& servers, int copies = 1);
// As many to each as before, but from where the shards are: no first copy moves that needn't, also to
// where the second is. present: of the same plan, on servers that need not be among `servers`.
v1::Placement MovePlacement(const ModelPlan& plan, const v1::Placement& present,
                            const std::vector<std::string>& servers, int copies = 1);

// workers: member ids, ascending, at most as many as replicas. Contiguous ranges whose
// lengths differ by at most one. Ascending by replica.
std::vector<v1::ReplicaAssignment> AssignReplicas(
    uint32_t replicas, const std::vector<std::string>& workers);

// Servers that have a copy of the shard, the first copy first.
std::vector<std::string> HostsOf(const v1::ShardPlacement& placed);
// Whether every shard of which the server has a copy is on another one, too.
bool CanSpare(const v1::Placement& placement, const std::string& server);
// Without a server that can be spared: the second copies of its shards are the first ones.
v1::Placement Without(v1::Placement placement, const std::string& server);

// The shards of which the placement gives a copy to the server.
std::set<std::string> ShardsOf(const v1::Placement& placement, const std::string& server);
// By server, in the plan's order; placement: of all shards of the plan, in that order.
std::map<std::string, std::vector<ShardSpec>> ShardsByServer(
    const ModelPlan& plan, const v1::Placement& placement);
// By worker, in the order given.
std::map<std::string, std::vector<uint32_t>> ReplicasByWorker(
    std::span<const v1::ReplicaAssignment> replicas);

}  // namespace moe
