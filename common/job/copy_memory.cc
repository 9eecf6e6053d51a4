#include "common/job/copy_memory.h"

#include <algorithm>

#include "common/job/tensor_state.h"

namespace moe {
namespace {

constexpr int64_t kLeast = int64_t{64} << 20;

}  // namespace

int64_t CopyBytes(const v1::Job& job, const ModelPlan& plan,
                  std::span<const ShardSpec> shards, bool tier, int64_t limit) {
  int64_t all = 0;
  int64_t resident = 0;
  for (const ShardSpec& shard : shards) {
    // The counts of a table's rows.
    int64_t bytes = shard.rows * static_cast<int64_t>(sizeof(int64_t));
    int64_t in_tier = 0;
    for (const int64_t t : shard.tensors) {
      const TensorSpec& tensor = plan.tensors[t];
      const TensorState state = StateOf(job.optimizer(), tensor);
      const int64_t of_tensor = state.parameter_bytes + state.optimizer_bytes();
      (tier && tensor.of_expert ? in_tier : bytes) += of_tensor;
    }
    all += bytes + in_tier;
    resident += bytes;
  }
  return std::min(all, limit > 0 ? limit : std::max(kLeast, resident / 4));
}

}  // namespace moe
