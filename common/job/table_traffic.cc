#include "common/job/table_traffic.h"

#include <algorithm>
#include <cmath>

#include "common/tensor/replica_tree.h"

namespace moe {

double DistinctWords(int64_t begin, int64_t end, double draws, int64_t vocabulary) {
  const double range = std::log(static_cast<double>(vocabulary) + 1);
  double distinct = 0;
  // Blocks of words whose probabilities differ by a 32nd at most, at their mean.
  for (int64_t first = begin; first < end;) {
    const int64_t words = std::min(first / 32 + 1, end - first);
    const auto count = static_cast<double>(words);
    const double p =
        std::log1p(count / (static_cast<double>(first) + 1)) / (range * count);
    distinct -= count * std::expm1(draws * std::log1p(-p));
    first += words;
  }
  return distinct;
}

double DrawsFor(double count, int64_t vocabulary) {
  const auto enough = [&](double draws) {
    return DistinctWords(0, vocabulary, draws, vocabulary) >= count;
  };
  double high = count;
  while (!enough(high)) high *= 2;
  double low = 0;
  for (int i = 0; i < 50; ++i) {
    const double middle = (low + high) / 2;
    (enough(middle) ? high : low) = middle;
  }
  return high;
}

TableTraffic::TableTraffic(const v1::Job& job, bool training)
    : job_(job), training_(training) {
  if (!job.model().has_tables()) return;
  candidate_draws_ =
      DrawsFor(job.model().tables().candidates(), job.model().vocabulary());
}

double TableTraffic::Rows(const ShardSpec& shard, int64_t replicas) const {
  const bool softmax = shard.table == Table::kSoftmax;
  if (softmax && !training_) return 0;
  const v1::Training& training = job_.training();
  const auto words = static_cast<double>(replicas * training.lanes() * training.unroll());
  // Words of the text and candidates have the same distribution.
  return DistinctWords(shard.first_row, shard.first_row + shard.rows,
                       words + (softmax ? candidate_draws_ : 0),
                       job_.model().vocabulary());
}

int64_t TableTraffic::Bytes(std::span<const ShardSpec> shards, int64_t replicas) const {
  double floats = 0;
  for (const ShardSpec& shard : shards) {
    if (shard.kind != ShardKind::kTable) continue;
    const int64_t columns = job_.model().d_model() + (shard.table == Table::kSoftmax);
    floats += Rows(shard, replicas) * static_cast<double>(columns + 1);
  }
  return std::llround(floats) * static_cast<int64_t>(sizeof(float));
}

int64_t TableTraffic::PushedBytes(std::span<const ShardSpec> shards,
                                  std::span<const uint32_t> owned) const {
  if (!job_.model().has_tables()) return 0;
  const auto replicas = static_cast<uint32_t>(job_.training().replicas());
  int64_t bytes = 0;
  for (const TreeNode node : MaximalNodes(owned, replicas)) {
    bytes += Bytes(shards, ReplicasOf(node, replicas));
  }
  return bytes;
}

}  // namespace moe
