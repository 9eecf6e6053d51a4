#include "client/shard_map.h"

#include <gtest/gtest.h>

#include "common/job/placement.h"
#include "tests/job/job_of.h"

namespace moe {
namespace {

v1::ClusterState StateOf(const v1::Job& job, const ModelPlan& plan) {
  v1::ClusterState state;
  *state.mutable_job() = job;
  for (const char* server : {"server/s0", "server/s1"}) {
    state.add_servers()->set_server(server);
  }
  *state.mutable_placement() = MakePlacement(plan, {"server/s0", "server/s1"});
  for (const auto& replica : AssignReplicas(5, {"worker/a", "worker/b", "worker/c"})) {
    *state.add_replicas() = replica;
  }
  return state;
}

TEST(ShardMapTest, SaysWhoHasWhatAndHowManyShareIt) {
  const v1::Job job = JobOf(
      "d_model: 3 vocabulary: 13 layers { lstm { hidden: 3 } }"
      " tables { shards: 3 candidates: 2 }",
      "replicas: 5");
  const ModelPlan plan = MakeModelPlan(job);
  const v1::ClusterState state = StateOf(job, plan);
  const auto map = MakeShardMap(state, plan);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->workers, 3);
  ASSERT_EQ(map->servers.size(), 2u);
  ASSERT_EQ(map->server_of_shard.size(), plan.shards.size());
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    EXPECT_EQ(map->servers[map->server_of_shard[i]].id,
              state.placement().shards(static_cast<int>(i)).server());
  }
}

TEST(ShardMapTest, SaysWhoHasSecondCopies) {
  const v1::Job job =
      JobOf("d_model: 3 vocabulary: 13 layers { lstm { hidden: 3 } }", "replicas: 5");
  const ModelPlan plan = MakeModelPlan(job);
  v1::ClusterState state = StateOf(job, plan);
  *state.mutable_placement() =
      MakePlacement(plan, {"server/s0", "server/s1"}, /*copies=*/2);
  const auto map = MakeShardMap(state, plan);
  ASSERT_TRUE(map.ok()) << map.status();
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    const std::vector<int32_t> copies = map->CopiesOf(static_cast<int32_t>(i));
    ASSERT_EQ(copies.size(), 2u);
    EXPECT_EQ(copies[0], map->server_of_shard[i]);
    EXPECT_NE(copies[0], copies[1]);
  }
  for (const ShardMap::Server& server : map->servers) {
    EXPECT_EQ(server.shards.size(), plan.shards.size());
  }

  v1::ShardPlacement& placed = *state.mutable_placement()->mutable_shards(0);
  placed.set_standby(placed.server());
  EXPECT_EQ(MakeShardMap(state, plan).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ShardMapTest, RefusesAPlacementThatLacksAShard) {
  const v1::Job job =
      JobOf("d_model: 3 vocabulary: 13 layers { lstm { hidden: 3 } }", "replicas: 5");
  const ModelPlan plan = MakeModelPlan(job);
  v1::ClusterState state = StateOf(job, plan);
  state.mutable_placement()->mutable_shards()->RemoveLast();
  EXPECT_EQ(MakeShardMap(state, plan).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace moe
