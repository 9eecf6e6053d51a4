#include "common/tensor/replica_tree.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "glog/logging.h"

namespace moe {
namespace {

uint32_t RootLevel(uint32_t replicas) {
  uint32_t level = 0;
  while ((uint64_t{1} << level) < replicas) ++level;
  return level;
}

uint64_t FirstReplica(TreeNode node) { return uint64_t{node.index} << node.level; }

uint64_t EndReplica(TreeNode node, uint32_t replicas) {
  return std::min<uint64_t>((uint64_t{node.index} + 1) << node.level, replicas);
}

void CollectMaximal(TreeNode node, const std::vector<bool>& owned,
                    std::vector<TreeNode>* out) {
  const auto first = owned.begin() + static_cast<int64_t>(FirstReplica(node));
  const auto end = owned.begin() + static_cast<int64_t>(EndReplica(
                                       node, static_cast<uint32_t>(owned.size())));
  if (std::find(first, end, false) == end) {
    out->push_back(node);
    return;
  }
  if (node.level == 0) return;
  for (const uint32_t child : {2 * node.index, 2 * node.index + 1}) {
    const TreeNode next{node.level - 1, child};
    if (FirstReplica(next) < owned.size()) CollectMaximal(next, owned, out);
  }
}

}  // namespace

std::vector<TreeNode> MaximalNodes(std::span<const uint32_t> owned, uint32_t replicas) {
  CHECK_GT(replicas, 0u);
  std::vector<bool> is_owned(replicas, false);
  for (const uint32_t replica : owned) {
    CHECK_LT(replica, replicas);
    is_owned[replica] = true;
  }
  std::vector<TreeNode> nodes;
  CollectMaximal(TreeNode{RootLevel(replicas), 0}, is_owned, &nodes);
  return nodes;
}

uint32_t ReplicasOf(TreeNode node, uint32_t replicas) {
  return static_cast<uint32_t>(EndReplica(node, replicas) - FirstReplica(node));
}

void AddSum(const std::vector<float>& other, std::vector<float>* sum) {
  for (size_t i = 0; i < sum->size(); ++i) (*sum)[i] += other[i];
}

void AddSum(const SparseRows& other, SparseRows* sum) {
  if (other.row.empty()) return;
  if (sum->row.empty()) {
    *sum = other;
    return;
  }
  const size_t cols = other.value.size() / other.row.size();
  SparseRows joined;
  joined.row.reserve(sum->row.size() + other.row.size());
  joined.value.reserve(sum->value.size() + other.value.size());
  const auto append = [&](const SparseRows& from, size_t i) {
    joined.row.push_back(from.row[i]);
    const float* values = from.value.data() + i * cols;
    joined.value.insert(joined.value.end(), values, values + cols);
  };
  size_t i = 0;
  size_t j = 0;
  while (i < sum->row.size() || j < other.row.size()) {
    if (j == other.row.size() || (i < sum->row.size() && sum->row[i] < other.row[j])) {
      append(*sum, i++);
    } else if (i == sum->row.size() || other.row[j] < sum->row[i]) {
      append(other, j++);
    } else {
      append(*sum, i++);
      float* values = joined.value.data() + joined.value.size() - cols;
      for (size_t c = 0; c < cols; ++c) values[c] += other.value[j * cols + c];
      ++j;
    }
  }
  *sum = std::move(joined);
}

template <typename Sum>
ReplicaTree<Sum>::ReplicaTree(uint32_t replicas)
    : replicas_(replicas), root_level_(RootLevel(replicas)), covered_(replicas) {
  CHECK_GT(replicas, 0u);
}

template <typename Sum>
bool ReplicaTree<Sum>::Exists(TreeNode node) const {
  return node.level <= root_level_ && FirstReplica(node) < replicas_;
}

template <typename Sum>
absl::Status ReplicaTree<Sum>::Add(TreeNode node, Sum sum) {
  if (!Exists(node)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the tree over %u replicas has no node (%u, %u)", replicas_,
                        node.level, node.index));
  }
  if (added_.contains(node)) return absl::OkStatus();
  for (uint64_t r = FirstReplica(node); r < EndReplica(node, replicas_); ++r) {
    if (covered_[r]) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "node (%u, %u) covers replica %d, which another node covers already",
          node.level, node.index, r));
    }
  }
  added_.insert(node);
  std::fill(covered_.begin() + static_cast<int64_t>(FirstReplica(node)),
            covered_.begin() + static_cast<int64_t>(EndReplica(node, replicas_)), true);

  while (node.level < root_level_) {
    const TreeNode sibling{node.level, node.index ^ 1};
    if (Exists(sibling)) {
      const auto held = held_.find(sibling);
      if (held == held_.end()) break;
      AddSum(held->second, &sum);
      held_.erase(held);
    }
    node = TreeNode{node.level + 1, node.index / 2};
  }
  held_.emplace(node, std::move(sum));
  return absl::OkStatus();
}

template <typename Sum>
std::vector<uint32_t> ReplicaTree<Sum>::Missing() const {
  std::vector<uint32_t> missing;
  for (uint32_t r = 0; r < replicas_; ++r) {
    if (!covered_[r]) missing.push_back(r);
  }
  return missing;
}

template <typename Sum>
Sum ReplicaTree<Sum>::TakeRoot() {
  CHECK(complete());
  return std::move(held_.extract(TreeNode{root_level_, 0}).mapped());
}

template <typename Sum>
std::vector<std::pair<TreeNode, Sum>> ReplicaTree<Sum>::TakeNodes() {
  std::vector<std::pair<TreeNode, Sum>> nodes;
  for (auto& [node, sum] : held_) nodes.emplace_back(node, std::move(sum));
  held_.clear();
  std::sort(nodes.begin(), nodes.end(), [](const auto& a, const auto& b) {
    return FirstReplica(a.first) < FirstReplica(b.first);
  });
  return nodes;
}

template class ReplicaTree<std::vector<float>>;
template class ReplicaTree<SparseRows>;

absl::Status TreeReduction::Add(TreeNode node, std::vector<float> sum) {
  if (static_cast<int64_t>(sum.size()) != size_) {
    return absl::InvalidArgumentError(
        absl::StrFormat("node (%u, %u) has %d values instead of %d", node.level,
                        node.index, sum.size(), size_));
  }
  return ReplicaTree::Add(node, std::move(sum));
}

}  // namespace moe
