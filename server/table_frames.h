// What workers send about table shards, decoded and checked. Errors are INVALID_ARGUMENT and
// say what is wrong; the caller adds whose message it is.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/kernels/backend.h"
#include "common/tensor/replica_tree.h"
#include "proto/moe/v1/table.pb.h"

namespace moe {

// Of a hosted table shard.
struct TableShape {
  int64_t rows = 0;
  int64_t columns = 0;  // floats of a row
};
using TableShapes = std::map<std::string, TableShape>;  // by shard

// The rows that are asked for.
absl::StatusOr<std::vector<int32_t>> DecodeRowSet(const TableShapes& tables,
                                                  const v1::RowSet& rows);

struct RowGradient {
  std::string shard;
  TreeNode node;
  SparseRows sum;
};
absl::StatusOr<RowGradient> DecodeRowGradient(const TableShapes& tables,
                                              const v1::RowGradientNode& node);

// One replica's part of a score.
struct ScoreInput {
  uint32_t replica = 0;
  Tensor x;                     // [T, d]
  std::vector<int32_t> target;  // [T] words
};
absl::StatusOr<ScoreInput> DecodeScore(Backend& backend, int64_t width,
                                       int64_t vocabulary, const v1::ScoreFrame& frame);

}  // namespace moe
