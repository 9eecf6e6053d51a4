// What a job's model consists of: its parameters as logical tensors, and the shards that
// they are cut into. A function of the job alone, so that every member derives the same
// plan.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "proto/moe/v1/job.pb.h"

namespace moe {

// One parameter tensor, row-major [rows, cols].
struct TensorSpec {
  // Position in the logical order: embedding, the layers in order (a mixture's gate, then
  // group by group the group's gate, if it has one, and its experts, each expert's w1 before
  // its w2; of a recurrent MoE the input mixture, the recurrent one, the bias), softmax weight,
  // softmax bias.
  int64_t index = 0;
  // embedding | layer<l>.lstm.{wx,wh,b[,wp]} | <mixture>.<gate> |
  // <mixture>.group<g>.<gate> (hierarchical) | <mixture>.expert<e>.{w1,w2} |
  // layer<l>.recurrent_moe.b | softmax.{w,b}; with tables (job.proto) embedding.rows<i> and
  // softmax.rows<i>.{w,b}. <mixture>: layer<l>.moe | layer<l>.recurrent_moe.{input,recurrent}.
  // An expert with m hidden layers has w1 .. w<m+1>. <gate> by gating: noisy top-k
  // {wg,wnoise}, softmax wg, strictly balanced {wg,threshold}, the latter being ln T.
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;
  // Initial values are uniform in [-bound, bound] (0: zeros) plus `offset` in the columns
  // [offset_begin, offset_end).
  float bound = 0;
  float offset = 0;
  int64_t offset_begin = 0;
  int64_t offset_end = 0;
  // Greater than 0: updated by SGD at this constant rate, whatever the job's optimizer,
  // schedule and clipping, and no part of the clipped norm.
  float own_rate = 0;
  // A matrix of an expert, and whether it is stored as bf16.
  bool of_expert = false;
  bool bfloat16 = false;
  // Some rows of a table.
  bool of_table = false;

  int64_t size() const { return rows * cols; }
};

// Number of dense shards if the job doesn't say.
inline constexpr int kDefaultDenseShards = 2;

enum class ShardKind { kDense, kTable, kExpert, kReplica };
enum class Table { kEmbedding, kSoftmax };

// dense/<i> | embedding/rows<i> | softmax/rows<i> | layer<l>/group<g> |
// layer<l>/{input,recurrent}/group<g> | replica/<r>
struct ShardSpec {
  std::string id;
  ShardKind kind = ShardKind::kDense;
  // Logical tensors, ascending. Dense shards: consecutive dense tensors; fewer shards
  // than the job asks for if there are fewer tensors. Expert shards: the secondary gate's
  // (gate_tensors), then w1, w2, .. of each expert in turn. Table shards: the range's part of
  // the table; of the softmax w, then b as a column.
  std::vector<int64_t> tensors;
  // Table shards: the rows of the words [first_row, first_row + rows).
  Table table = Table::kEmbedding;
  int64_t first_row = 0;
  int64_t rows = 0;
  // Expert shards; mixture: as in MixtureId (mixtures.h).
  int32_t layer = 0;
  uint32_t mixture = 0;
  int32_t group = 0;
  int32_t first_expert = 0;
  int32_t experts = 0;
  // 2 in a hierarchical MoE: wg, wnoise; else 0.
  int32_t gate_tensors = 0;
  // Replica shards.
  uint32_t replica = 0;
};

struct ModelPlan {
  std::vector<TensorSpec> tensors;
  // Dense, then table (embedding before softmax, by rows), then expert (by mixture and group), then
  // replica shards.
  std::vector<ShardSpec> shards;

  int64_t SizeOf(const ShardSpec& shard) const {
    int64_t size = 0;
    for (int64_t t : shard.tensors) size += tensors[t].size();
    return size;
  }
};

// `job` is valid (job_file.h) and its model.vocabulary is set.
ModelPlan MakeModelPlan(const v1::Job& job);

// Initial values of one tensor: host memory, [rows * cols]. A bf16 tensor starts with the nearest.
void FillInitialValues(uint64_t seed, const TensorSpec& tensor, float* out);
// Those of the rows [begin, begin + rows) alone: [rows * cols].
void FillInitialRows(uint64_t seed, const TensorSpec& tensor, int64_t begin, int64_t rows,
                     float* out);

}  // namespace moe
