// Sums over replicas along a fixed binary tree, so that the bits of a sum don't depend on
// which worker owns which replica (docs/design/bits.md).
//
// Node (level, index) covers the replicas [index * 2^level, (index + 1) * 2^level) that
// exist; the root has level ceil(log2 R). A node's sum is left + right; where the right
// child has no replicas the node's sum is the left child's.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace moe {

struct TreeNode {
  uint32_t level = 0;
  uint32_t index = 0;
  friend auto operator<=>(const TreeNode&, const TreeNode&) = default;
};

// The largest nodes whose existing replicas are all in `owned` (ascending), by first
// replica.
std::vector<TreeNode> MaximalNodes(std::span<const uint32_t> owned, uint32_t replicas);

// Existing replicas that the node covers.
uint32_t ReplicasOf(TreeNode node, uint32_t replicas);

// Sums of some rows of a table with any number of columns: value [row.size(), columns].
struct SparseRows {
  std::vector<uint32_t> row;  // ascending
  std::vector<float> value;
};

// sum += other. Of sparse rows: a row of one of the two alone is as it was.
void AddSum(const std::vector<float>& other, std::vector<float>* sum);
void AddSum(const SparseRows& other, SparseRows* sum);

// Joins the sums of nodes; Sum is a type with an AddSum, whose bits don't depend on the order of the
// two. Not thread-safe.
template <typename Sum>
class ReplicaTree {
 public:
  explicit ReplicaTree(uint32_t replicas);

  // Adds a node's sum and joins siblings as far up as possible. The same node again is
  // ignored; INVALID_ARGUMENT: no such node, or a part of a node that is already there.
  absl::Status Add(TreeNode node, Sum sum);
  // All replicas are covered.
  bool complete() const { return held_.contains(TreeNode{root_level_, 0}); }
  // Replicas not covered yet, ascending.
  std::vector<uint32_t> Missing() const;
  // The sum over all replicas; call once, when complete.
  Sum TakeRoot();
  // The nodes held at present, by first replica; for a worker's maximal nodes. Call once.
  std::vector<std::pair<TreeNode, Sum>> TakeNodes();

 private:
  bool Exists(TreeNode node) const;

  const uint32_t replicas_;
  const uint32_t root_level_;
  // Sums not joined yet; nodes without a sibling are lifted to their parent.
  std::map<TreeNode, Sum> held_;
  std::set<TreeNode> added_;
  std::vector<bool> covered_;
};

// Of contributions of `size` floats each.
class TreeReduction : public ReplicaTree<std::vector<float>> {
 public:
  TreeReduction(uint32_t replicas, int64_t size) : ReplicaTree(replicas), size_(size) {}

  // Also INVALID_ARGUMENT: a wrong size.
  absl::Status Add(TreeNode node, std::vector<float> sum);

 private:
  const int64_t size_;
};

extern template class ReplicaTree<std::vector<float>>;
extern template class ReplicaTree<SparseRows>;

}  // namespace moe
