#include "common/tensor/replica_tree.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moe {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kSize = 17;

// Values of widely differing size, so that another order of the additions shows in the
// bits.
std::vector<std::vector<float>> Leaves(uint32_t replicas, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> leaves(replicas, std::vector<float>(kSize));
  for (auto& leaf : leaves) {
    for (float& value : leaf) value = normal(random) * std::exp(4 * normal(random));
  }
  return leaves;
}

// The definition, word for word.
std::vector<float> NodeSum(const std::vector<std::vector<float>>& leaves, uint32_t level,
                           uint32_t index) {
  if (level == 0) return leaves[index];
  std::vector<float> sum = NodeSum(leaves, level - 1, 2 * index);
  if ((uint64_t{2 * index + 1} << (level - 1)) >= leaves.size()) return sum;
  const std::vector<float> right = NodeSum(leaves, level - 1, 2 * index + 1);
  for (int64_t i = 0; i < kSize; ++i) sum[i] = sum[i] + right[i];
  return sum;
}

std::vector<float> RootSum(const std::vector<std::vector<float>>& leaves) {
  uint32_t level = 0;
  while ((1u << level) < leaves.size()) ++level;
  return NodeSum(leaves, level, 0);
}

// Reduces in two stages, as workers and servers do: each owner's replicas, then the
// owners' nodes.
std::vector<float> ReduceInTwoStages(const std::vector<std::vector<float>>& leaves,
                                     const std::vector<int>& owner,
                                     std::mt19937& random) {
  const uint32_t replicas = static_cast<uint32_t>(leaves.size());
  std::map<int, std::vector<uint32_t>> owned;
  for (uint32_t r = 0; r < replicas; ++r) owned[owner[r]].push_back(r);
  std::vector<std::pair<TreeNode, std::vector<float>>> all;
  for (auto& [_, replicas_of_owner] : owned) {
    TreeReduction reduction(replicas, kSize);
    std::vector<uint32_t> order = replicas_of_owner;
    std::shuffle(order.begin(), order.end(), random);
    for (const uint32_t r : order) EXPECT_TRUE(reduction.Add({0, r}, leaves[r]).ok());
    std::vector<TreeNode> names;
    for (auto& node : reduction.TakeNodes()) {
      names.push_back(node.first);
      all.push_back(std::move(node));
    }
    EXPECT_EQ(names, MaximalNodes(replicas_of_owner, replicas));
  }
  std::shuffle(all.begin(), all.end(), random);
  TreeReduction reduction(replicas, kSize);
  for (auto& [node, sum] : all) {
    EXPECT_FALSE(reduction.complete());
    EXPECT_TRUE(reduction.Add(node, sum).ok());
  }
  EXPECT_TRUE(reduction.complete());
  EXPECT_TRUE(reduction.Missing().empty());
  return reduction.TakeRoot();
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Calls fn with every partition of `replicas` elements, as restricted growth strings.
void ForEachPartition(std::vector<int>& owner, size_t next, int owners,
                      const std::function<void(const std::vector<int>&)>& fn) {
  if (next == owner.size()) {
    fn(owner);
    return;
  }
  for (int o = 0; o <= owners; ++o) {
    owner[next] = o;
    ForEachPartition(owner, next + 1, std::max(owners, o + 1), fn);
  }
}

TEST(ReplicaTree, EveryPartitionOfUpToNineReplicasGivesTheSameBits) {
  std::mt19937 random(1);
  for (uint32_t replicas = 1; replicas <= 9; ++replicas) {
    const auto leaves = Leaves(replicas, replicas);
    const std::vector<float> expected = RootSum(leaves);
    std::vector<int> owner(replicas);
    ForEachPartition(owner, 0, 0, [&](const std::vector<int>& partition) {
      ASSERT_TRUE(SameBits(ReduceInTwoStages(leaves, partition, random), expected))
          << replicas << " replicas, owners " << testing::PrintToString(partition);
    });
  }
}

TEST(ReplicaTree, RandomOwnersOfUpTo23ReplicasGiveTheSameBits) {
  std::mt19937 random(2);
  for (uint32_t replicas = 1; replicas <= 23; ++replicas) {
    const auto leaves = Leaves(replicas, 100 + replicas);
    const std::vector<float> expected = RootSum(leaves);
    for (int round = 0; round < 40; ++round) {
      const int owners = 1 + static_cast<int>(random() % replicas);
      std::vector<int> owner(replicas);
      for (int& o : owner) o = static_cast<int>(random() % owners);
      ASSERT_TRUE(SameBits(ReduceInTwoStages(leaves, owner, random), expected))
          << replicas << " replicas, owners " << testing::PrintToString(owner);
    }
  }
}

TEST(ReplicaTree, OrderMattersSoThatTheTestsAboveCanFail) {
  const auto leaves = Leaves(9, 9);
  std::vector<float> in_order = leaves[0];
  for (size_t r = 1; r < leaves.size(); ++r) {
    for (int64_t i = 0; i < kSize; ++i) in_order[i] += leaves[r][i];
  }
  EXPECT_FALSE(SameBits(in_order, RootSum(leaves)));
}

TEST(ReplicaTree, MaximalNodesAreLiftedOverAbsentSiblings) {
  const auto nodes = [](std::vector<uint32_t> owned, uint32_t replicas) {
    return MaximalNodes(owned, replicas);
  };
  EXPECT_THAT(nodes({0}, 1), ElementsAre(TreeNode{0, 0}));
  EXPECT_THAT(nodes({4}, 5), ElementsAre(TreeNode{2, 1}));
  EXPECT_THAT(nodes({0, 1, 2, 3, 4}, 5), ElementsAre(TreeNode{3, 0}));
  EXPECT_THAT(nodes({1, 2, 3, 4}, 6),
              ElementsAre(TreeNode{0, 1}, TreeNode{1, 1}, TreeNode{0, 4}));
  EXPECT_THAT(nodes({}, 6), ElementsAre());
}

// The sum of those leaves under a node that have the row, along the tree; nothing if none has.
std::optional<float> SparseSum(const std::vector<std::optional<float>>& leaves,
                               uint32_t level, uint32_t index) {
  if (level == 0) return index < leaves.size() ? leaves[index] : std::nullopt;
  const std::optional<float> left = SparseSum(leaves, level - 1, 2 * index);
  const std::optional<float> right = SparseSum(leaves, level - 1, 2 * index + 1);
  if (left.has_value() && right.has_value()) return *left + *right;
  return left.has_value() ? left : right;
}

TEST(ReplicaTree, RowsOfSomeReplicasAddAlongTheTreeWhoeverOwnsThem) {
  constexpr uint32_t kRows = 40;
  std::mt19937 random(3);
  for (uint32_t replicas = 1; replicas <= 11; ++replicas) {
    const auto values = Leaves(replicas, 200 + replicas);
    // [row][replica]
    std::vector<std::vector<std::optional<float>>> leaves(
        kRows, std::vector<std::optional<float>>(replicas));
    for (uint32_t row = 0; row < kRows; ++row) {
      for (uint32_t r = 0; r < replicas; ++r) {
        if (random() % 3 == 0) leaves[row][r] = values[r][row % kSize];
      }
    }
    SparseRows expected;
    uint32_t level = 0;
    while ((1u << level) < replicas) ++level;
    for (uint32_t row = 0; row < kRows; ++row) {
      const std::optional<float> sum = SparseSum(leaves[row], level, 0);
      if (!sum.has_value()) continue;
      expected.row.push_back(row);
      expected.value.push_back(*sum);
      expected.value.push_back(-*sum);
    }
    for (int round = 0; round < 20; ++round) {
      const uint32_t owners = 1 + random() % replicas;
      std::vector<ReplicaTree<SparseRows>> of_owner(owners,
                                                    ReplicaTree<SparseRows>(replicas));
      for (uint32_t r = 0; r < replicas; ++r) {
        SparseRows rows;
        for (uint32_t row = 0; row < kRows; ++row) {
          if (!leaves[row][r].has_value()) continue;
          rows.row.push_back(row);
          rows.value.push_back(*leaves[row][r]);
          rows.value.push_back(-*leaves[row][r]);
        }
        EXPECT_TRUE(of_owner[random() % owners].Add({0, r}, std::move(rows)).ok());
      }
      ReplicaTree<SparseRows> tree(replicas);
      for (auto& owned : of_owner) {
        for (auto& [node, sum] : owned.TakeNodes()) {
          EXPECT_TRUE(tree.Add(node, std::move(sum)).ok());
        }
      }
      ASSERT_TRUE(tree.complete());
      const SparseRows root = tree.TakeRoot();
      EXPECT_EQ(root.row, expected.row);
      EXPECT_TRUE(SameBits(root.value, expected.value)) << replicas;
    }
  }
}

TEST(ReplicaTree, TheSameNodeAgainIsIgnored) {
  TreeReduction reduction(3, 1);
  ASSERT_TRUE(reduction.Add({0, 0}, {1}).ok());
  ASSERT_TRUE(reduction.Add({0, 0}, {1}).ok());
  ASSERT_TRUE(reduction.Add({0, 1}, {2}).ok());
  ASSERT_TRUE(reduction.Add({0, 0}, {1}).ok());
  EXPECT_THAT(reduction.Missing(), ElementsAre(2u));
  EXPECT_FALSE(reduction.complete());
  ASSERT_TRUE(reduction.Add({1, 1}, {4}).ok());
  ASSERT_TRUE(reduction.Add({0, 1}, {2}).ok());
  EXPECT_THAT(reduction.TakeRoot(), ElementsAre(7.0f));
}

TEST(ReplicaTree, RefusesWhatDoesNotFit) {
  TreeReduction reduction(5, 2);
  const auto message = [&](TreeNode node, std::vector<float> sum) {
    const absl::Status status = reduction.Add(node, std::move(sum));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message({0, 5}, {1, 2}), testing::HasSubstr("no node (0, 5)"));
  EXPECT_THAT(message({4, 0}, {1, 2}), testing::HasSubstr("no node (4, 0)"));
  EXPECT_THAT(message({40, 0}, {1, 2}), testing::HasSubstr("no node (40, 0)"));
  EXPECT_THAT(message({0, 1}, {1}), testing::HasSubstr("1 values instead of 2"));
  ASSERT_TRUE(reduction.Add({1, 0}, {1, 2}).ok());
  EXPECT_THAT(message({0, 1}, {1, 2}), testing::HasSubstr("covers replica 1"));
  EXPECT_THAT(message({2, 0}, {1, 2}), testing::HasSubstr("covers replica 0"));
  // The refused ones left nothing behind.
  EXPECT_THAT(reduction.Missing(), ElementsAre(2u, 3u, 4u));
  ASSERT_TRUE(reduction.Add({1, 1}, {3, 4}).ok());
  ASSERT_TRUE(reduction.Add({0, 4}, {5, 6}).ok());
  EXPECT_THAT(reduction.TakeRoot(), ElementsAre(9.0f, 12.0f));
}

}  // namespace
}  // namespace moe
