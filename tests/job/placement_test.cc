#include "common/job/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace moe {
namespace {

using ::testing::ElementsAre;

// A plan of shards with one tensor each.
class PlanBuilder {
 public:
  void Add(ShardKind kind, const std::string& id, int64_t size, int32_t layer = 0) {
    ShardSpec shard;
    shard.id = id;
    shard.kind = kind;
    shard.layer = layer;
    if (kind != ShardKind::kReplica) {
      TensorSpec tensor;
      tensor.name = id;
      tensor.index = static_cast<int64_t>(plan_.tensors.size());
      tensor.rows = size;
      tensor.cols = 1;
      shard.tensors = {tensor.index};
      plan_.tensors.push_back(tensor);
    }
    plan_.shards.push_back(shard);
  }
  const ModelPlan& plan() const { return plan_; }

 private:
  ModelPlan plan_;
};

std::map<std::string, std::string> ServerOf(const v1::Placement& placement) {
  std::map<std::string, std::string> server_of;
  for (const v1::ShardPlacement& shard : placement.shards()) {
    EXPECT_FALSE(server_of.contains(shard.shard()));
    server_of[shard.shard()] = shard.server();
  }
  return server_of;
}

// Shards of four classes.
PlanBuilder SomePlan() {
  PlanBuilder builder;
  for (int i = 0; i < 5; ++i)
    builder.Add(ShardKind::kDense, absl::StrCat("dense/", i), 10 + i);
  for (int layer : {1, 3}) {
    for (int g = 0; g < 8; ++g) {
      builder.Add(ShardKind::kExpert, absl::StrCat("layer", layer, "/group", g), 100,
                  layer);
    }
  }
  for (int r = 0; r < 4; ++r)
    builder.Add(ShardKind::kReplica, absl::StrCat("replica/", r), 0);
  return builder;
}

// Of each class of SomePlan every server has as many as any other, give or take one.
void ExpectBalanced(const v1::Placement& placement,
                    const std::vector<std::string>& names) {
  const auto server_of = ServerOf(placement);
  for (const std::string prefix : {"dense/", "layer1/", "layer3/", "replica/"}) {
    std::map<std::string, int> held;
    for (const std::string& name : names) held[name] = 0;
    for (const auto& [shard, server] : server_of) {
      if (shard.starts_with(prefix)) ++held[server];
    }
    ASSERT_EQ(held.size(), names.size());
    const auto [least, most] = std::minmax_element(
        held.begin(), held.end(), [](auto& a, auto& b) { return a.second < b.second; });
    EXPECT_LE(most->second - least->second, 1) << prefix << " on " << names.size();
  }
}

TEST(PlacementTest, EveryClassOfShardsIsBalanced) {
  const PlanBuilder builder = SomePlan();
  for (int servers : {1, 2, 3, 4, 7, 20}) {
    std::vector<std::string> names;
    for (int s = 0; s < servers; ++s) names.push_back(absl::StrCat("server/", 10 + s));
    const v1::Placement placement = MakePlacement(builder.plan(), names);
    EXPECT_EQ(placement.version(), 1);
    ASSERT_EQ(ServerOf(placement).size(), builder.plan().shards.size());
    ExpectBalanced(placement, names);
  }
}

TEST(PlacementTest, ShardsMoveOnlyToNewcomersAndFromThoseThatLeave) {
  const PlanBuilder builder = SomePlan();
  using Names = std::vector<std::string>;
  v1::Placement present = MakePlacement(builder.plan(), {"server/a"});
  for (const Names& names :
       {Names{"server/a", "server/b"}, Names{"server/0", "server/a", "server/b"},
        Names{"server/0", "server/a", "server/b"}, Names{"server/0", "server/b"},
        Names{"server/b", "server/c", "server/d", "server/e", "server/f"},
        Names{"server/d"}}) {
    const auto before = ServerOf(present);
    std::set<std::string> had;
    for (const auto& [shard, server] : before) had.insert(server);
    const v1::Placement next = MovePlacement(builder.plan(), present, names);
    EXPECT_EQ(next.version(), present.version() + 1);
    ExpectBalanced(next, names);
    for (const auto& [shard, server] : ServerOf(next)) {
      const std::string& from = before.at(shard);
      if (server == from) continue;
      const bool leaves = std::find(names.begin(), names.end(), from) == names.end();
      EXPECT_TRUE(leaves || !had.contains(server))
          << shard << ": " << from << " to " << server;
    }
    present = next;
  }
}

// Parameters that the copies on each server have.
std::map<std::string, int64_t> Held(const ModelPlan& plan,
                                    const v1::Placement& placement) {
  std::map<std::string, int64_t> held;
  for (const auto& [server, shards] : ShardsByServer(plan, placement)) {
    for (const ShardSpec& shard : shards) held[server] += plan.SizeOf(shard);
  }
  return held;
}

TEST(PlacementTest, SecondCopiesAreOnOtherServersAndBalanced) {
  const PlanBuilder builder = SomePlan();
  const ModelPlan& plan = builder.plan();
  int64_t all = 0;
  for (const ShardSpec& shard : plan.shards) all += plan.SizeOf(shard);
  for (int servers : {2, 3, 4, 7}) {
    std::vector<std::string> names;
    for (int s = 0; s < servers; ++s) names.push_back(absl::StrCat("server/", 10 + s));
    const v1::Placement placement = MakePlacement(plan, names, /*copies=*/2);
    // The first copies are where they would be alone.
    EXPECT_EQ(ServerOf(placement), ServerOf(MakePlacement(plan, names)));
    std::map<std::string, std::set<std::string>> neighbours;
    for (const v1::ShardPlacement& placed : placement.shards()) {
      ASSERT_EQ(HostsOf(placed).size(), 2u);
      EXPECT_NE(placed.server(), placed.standby());
      neighbours[placed.server()].insert(placed.standby());
      for (const std::string& host : HostsOf(placed)) {
        EXPECT_TRUE(ShardsOf(placement, host).contains(placed.shard()));
      }
    }
    // So that losses that aren't neighbours cost nothing.
    for (const auto& [server, standbys] : neighbours) EXPECT_EQ(standbys.size(), 1u);
    for (const std::string prefix : {"dense/", "layer1/", "layer3/", "replica/"}) {
      std::map<std::string, int> held;
      for (const std::string& name : names) {
        held[name] = 0;
        for (const std::string& shard : ShardsOf(placement, name)) {
          held[name] += shard.starts_with(prefix);
        }
      }
      const auto [least, most] = std::minmax_element(
          held.begin(), held.end(), [](auto& a, auto& b) { return a.second < b.second; });
      EXPECT_LE(most->second - least->second, 2) << prefix << " on " << servers;
    }
    // Each counts twice.
    int64_t sum = 0;
    for (const auto& [server, parameters] : Held(plan, placement)) sum += parameters;
    EXPECT_EQ(sum, 2 * all);
  }
  const v1::Placement one = MakePlacement(plan, {"server/a"}, /*copies=*/2);
  for (const v1::ShardPlacement& placed : one.shards()) EXPECT_EQ(placed.standby(), "");
}

TEST(PlacementTest, WithoutOneTheSecondCopiesAreTheFirst) {
  const PlanBuilder builder = SomePlan();
  const std::vector<std::string> names = {"server/a", "server/b", "server/c"};
  const v1::Placement all = MakePlacement(builder.plan(), names, 2);
  for (const std::string& lost : names) {
    ASSERT_TRUE(CanSpare(all, lost));
    const v1::Placement rest = Without(all, lost);
    EXPECT_EQ(rest.version(), all.version());
    EXPECT_TRUE(ShardsOf(rest, lost).empty());
    for (int i = 0; i < all.shards_size(); ++i) {
      const v1::ShardPlacement& before = all.shards(i);
      const v1::ShardPlacement& after = rest.shards(i);
      EXPECT_EQ(after.server(),
                before.server() == lost ? before.standby() : before.server());
      const bool had = before.server() == lost || before.standby() == lost;
      EXPECT_EQ(after.standby(), had ? "" : before.standby());
    }
    // Of three servers any two are neighbours.
    for (const std::string& other : names) {
      EXPECT_EQ(CanSpare(rest, other), other == lost);
    }
  }
  EXPECT_FALSE(CanSpare(MakePlacement(builder.plan(), names), "server/a"));
  // Of four those opposite each other aren't.
  const v1::Placement four =
      MakePlacement(builder.plan(), {"server/a", "server/b", "server/c", "server/d"}, 2);
  EXPECT_TRUE(CanSpare(Without(four, "server/a"), "server/c"));
  EXPECT_FALSE(CanSpare(Without(four, "server/a"), "server/b"));
}

TEST(PlacementTest, ANewcomerGetsTheCopiesThatTheLostOneHad) {
  // Of each class as many to every server.
  PlanBuilder builder;
  for (int i = 0; i < 6; ++i)
    builder.Add(ShardKind::kDense, absl::StrCat("dense/", i), 10);
  for (int layer : {1, 3}) {
    for (int g = 0; g < 9; ++g) {
      builder.Add(ShardKind::kExpert, absl::StrCat("layer", layer, "/group", g), 100,
                  layer);
    }
  }
  for (int r = 0; r < 3; ++r)
    builder.Add(ShardKind::kReplica, absl::StrCat("replica/", r), 0);
  const std::vector<std::string> names = {"server/a", "server/b", "server/c"};
  const v1::Placement all = MakePlacement(builder.plan(), names, 2);
  for (const std::string& lost : names) {
    const v1::Placement rest = Without(all, lost);
    const v1::Placement next = MovePlacement(builder.plan(), rest, names, 2);
    ExpectBalanced(next, names);
    for (const v1::ShardPlacement& placed : next.shards()) {
      EXPECT_NE(placed.standby(), "");
      EXPECT_NE(placed.standby(), placed.server());
    }
    // The others fetch nothing.
    for (const std::string& name : names) {
      if (name == lost) continue;
      const std::set<std::string> had = ShardsOf(rest, name);
      for (const std::string& shard : ShardsOf(next, name)) {
        EXPECT_TRUE(had.contains(shard)) << shard << " to " << name;
      }
    }
  }
}

TEST(PlacementTest, LargeShardsOfDifferentClassesPart) {
  PlanBuilder builder;
  builder.Add(ShardKind::kDense, "dense/0", 1000);
  builder.Add(ShardKind::kExpert, "layer1/group0", 500, 1);
  const auto server_of =
      ServerOf(MakePlacement(builder.plan(), {"server/a", "server/b"}));
  EXPECT_NE(server_of.at("dense/0"), server_of.at("layer1/group0"));
}

TEST(PlacementTest, IsAFunctionOfItsInput) {
  PlanBuilder builder;
  for (int g = 0; g < 9; ++g) {
    builder.Add(ShardKind::kExpert, absl::StrCat("layer0/group", g), 7 * g % 4);
  }
  const std::vector<std::string> servers = {"server/a", "server/b"};
  EXPECT_EQ(MakePlacement(builder.plan(), servers).SerializeAsString(),
            MakePlacement(builder.plan(), servers).SerializeAsString());
}

TEST(AssignReplicasTest, ContiguousRanges) {
  const auto workers_of = [](uint32_t replicas, const std::vector<std::string>& workers) {
    std::vector<std::string> owners;
    for (const v1::ReplicaAssignment& assignment : AssignReplicas(replicas, workers)) {
      EXPECT_EQ(assignment.replica(), owners.size());
      owners.push_back(assignment.worker());
    }
    return owners;
  };
  EXPECT_THAT(workers_of(1, {"a"}), ElementsAre("a"));
  EXPECT_THAT(workers_of(4, {"a", "b"}), ElementsAre("a", "a", "b", "b"));
  EXPECT_THAT(workers_of(5, {"a", "b", "c"}), ElementsAre("a", "a", "b", "b", "c"));
  EXPECT_THAT(workers_of(3, {"a", "b", "c"}), ElementsAre("a", "b", "c"));
}

}  // namespace
}  // namespace moe
