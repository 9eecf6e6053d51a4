#include "server/coordinator/message_sizes.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "common/job/placement.h"
#include "common/job/step_memory.h"
#include "common/tensor/replica_tree.h"

namespace moe {
namespace {

// What a message has besides its parts, and each part besides its numbers.
constexpr int64_t kFraming = 1024;
constexpr int64_t kPartFraming = 128;

int64_t FloatBytes(int64_t floats) {
  return floats * static_cast<int64_t>(sizeof(float));
}

class StepMessages {
 public:
  StepMessages(const v1::Job& job, const ModelPlan& plan, int64_t most)
      : job_(job), plan_(plan), most_(most) {}

  absl::Status CheckClose(const std::string& worker, const std::vector<uint32_t>& owned,
                          const std::string& server,
                          const std::vector<ShardSpec>& shards) const {
    int64_t dense = 0;
    int64_t states = 0;
    int64_t embedding_rows = 0;
    int64_t softmax_rows = 0;
    for (const ShardSpec& shard : shards) {
      switch (shard.kind) {
        case ShardKind::kDense:
          dense += FloatBytes(plan_.SizeOf(shard)) + kPartFraming;
          break;
        case ShardKind::kTable:
          (shard.table == Table::kSoftmax ? softmax_rows : embedding_rows) += shard.rows;
          break;
        case ShardKind::kReplica:
          if (std::binary_search(owned.begin(), owned.end(), shard.replica)) {
            states += CarriedStateBytes(job_) + kPartFraming;
          }
          break;
        case ShardKind::kExpert:
          break;
      }
    }
    const int64_t tables = std::count_if(
        shards.begin(), shards.end(),
        [](const ShardSpec& shard) { return shard.kind == ShardKind::kTable; });
    const auto replicas = static_cast<uint32_t>(job_.training().replicas());
    const std::vector<TreeNode> nodes = MaximalNodes(owned, replicas);
    const auto count = static_cast<int64_t>(nodes.size());
    int64_t rows = 0;
    for (const TreeNode node : nodes) {
      const uint32_t covered = ReplicasOf(node, replicas);
      rows += tables * kPartFraming +
              RowBytes(Table::kEmbedding, embedding_rows, covered) +
              RowBytes(Table::kSoftmax, softmax_rows, covered);
    }
    const int64_t bytes = count * dense + rows + states;
    if (bytes <= most_) return absl::OkStatus();
    const std::string advice =
        rows > count * dense
            ? absl::StrCat("start more servers, up to model.tables.shards (",
                           job_.model().tables().shards(),
                           "), or more workers, or lower training.lanes, training.unroll "
                           "or model.tables.candidates")
            : "start more servers, and raise training.dense_shards to at least their "
              "number";
    return absl::FailedPreconditionError(absl::StrCat(
        worker, " may close a step at ", server, " with ", FormatCount(bytes), " bytes (",
        count, " times dense gradients of ", FormatCount(dense), "; rows of tables ",
        FormatCount(rows), "; state ", FormatCount(states), "), and a message holds ",
        FormatCount(most_), ": ", advice));
  }

  absl::Status CheckPulls(const std::string& worker, int64_t owned) const {
    for (const ShardSpec& shard : plan_.shards) {
      if (shard.kind != ShardKind::kTable) continue;
      const int64_t bytes = RowBytes(shard.table, shard.rows, owned);
      if (bytes <= most_) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          worker, " may pull ", FormatCount(bytes), " bytes of the ",
          FormatCount(shard.rows), " rows of ", shard.id, ", and a message holds ",
          FormatCount(most_), ": raise model.tables.shards, which makes ",
          job_.model().tables().shards(), " of each table now"));
    }
    return absl::OkStatus();
  }

 private:
  // Of what so many replicas name at most of so many rows: numbers and values.
  int64_t RowBytes(Table table, int64_t rows, int64_t replicas) const {
    const v1::Training& training = job_.training();
    const bool softmax = table == Table::kSoftmax;
    const int64_t named = replicas * training.lanes() * training.unroll() +
                          (softmax ? job_.model().tables().candidates() : 0);
    return FloatBytes(std::min(rows, named) * (job_.model().d_model() + softmax + 1));
  }

  const v1::Job& job_;
  const ModelPlan& plan_;
  const int64_t most_;
};

}  // namespace

absl::Status CheckShardSizes(const ModelPlan& plan, int64_t max_bytes) {
  const int64_t most = max_bytes - kFraming;
  int dense_shards = 0;
  for (const ShardSpec& shard : plan.shards) {
    dense_shards += shard.kind == ShardKind::kDense;
  }
  for (const ShardSpec& shard : plan.shards) {
    const int64_t bytes = FloatBytes(plan.SizeOf(shard));
    if (shard.kind != ShardKind::kDense || bytes <= most) continue;
    std::string advice = absl::StrCat("raise training.dense_shards, which makes ",
                                      dense_shards, " shards now");
    for (const int64_t t : shard.tensors) {
      const TensorSpec& tensor = plan.tensors[t];
      if (FloatBytes(tensor.size()) <= most) continue;
      advice = absl::StrCat("more shards can't help, as a tensor lies in one shard and ",
                            tensor.name, " [", tensor.rows, ", ", tensor.cols,
                            "] alone is larger; for a large vocabulary set model.tables");
      break;
    }
    return absl::FailedPreconditionError(
        absl::StrCat("dense shard ", shard.id, " has ", FormatCount(bytes),
                     " bytes, and a message holds ", FormatCount(most), ": ", advice));
  }
  return absl::OkStatus();
}

absl::Status CheckStepMessages(const v1::Job& job, const ModelPlan& plan,
                               const v1::Placement& placement,
                               std::span<const v1::ReplicaAssignment> replicas,
                               int64_t max_bytes) {
  const std::map<std::string, std::vector<ShardSpec>> shards =
      ShardsByServer(plan, placement);
  const StepMessages messages(job, plan, max_bytes - kFraming);
  for (const auto& [worker, of_worker] : ReplicasByWorker(replicas)) {
    RETURN_IF_ERROR(messages.CheckPulls(worker, static_cast<int64_t>(of_worker.size())));
    for (const auto& [server, of_server] : shards) {
      RETURN_IF_ERROR(messages.CheckClose(worker, of_worker, server, of_server));
    }
  }
  return absl::OkStatus();
}

}  // namespace moe
