// What workers send for a step, decoded and checked: from here on nothing about it can be
// wrong.
//
// Errors are INVALID_ARGUMENT and say what is wrong within the frame; the caller adds
// which replica, step, wave and layer.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/moments.h"
#include "common/base/pieces.h"
#include "common/kernels/backend.h"
#include "common/tensor/replica_tree.h"
#include "proto/moe/v1/expert.pb.h"
#include "server/table_frames.h"

namespace moe {

// The largest gate that is let pass, and the largest share of a sum of them in the number of
// its tokens: what rounding may add to 1.
inline constexpr double kMostGate = 1 + 1e-6;

// One replica's chosen (row, expert) pairs in one group of b experts, by row, then
// expert.
struct GroupPairs {
  std::vector<int32_t> row;     // [p] within the replica's frame
  std::vector<int32_t> expert;  // [p] within the group
  std::vector<float> gate;      // [p]
  // [b] sums over the micro-batch; empty in evaluation, and what a secondary gate chose
  // has none.
  std::vector<double> importance;
  std::vector<double> load;
};

// One replica's rows for which the primary gate of a hierarchical MoE chose one group.
struct GroupRows {
  std::vector<int32_t> row;  // [q] within the replica's frame, ascending
  std::vector<float> gate;   // [q] G_primary(x)_group
  // Sum over the micro-batch of P_primary(x, group); 0 in evaluation.
  double load = 0;
};

// One replica's part of a forward rendezvous.
struct ForwardInput {
  uint32_t tokens = 0;
  std::vector<int32_t> token;  // [rows] within the micro-batch, ascending
  Tensor x;                    // [rows, in]
  // Every hosted group of the mixture, ascending: one of the two.
  std::vector<GroupPairs> pairs;  // flat
  std::vector<GroupRows> rows;    // hierarchical
};

// One replica's part of a backward rendezvous.
struct BackwardInput {
  Tensor dy;  // [rows, out]
  // Hierarchical: of the layer over the whole step.
  std::optional<BalanceMoments> moments;
};

// What a server hosts of a mixture, and its widths.
struct LayerShape {
  int64_t in = 0;
  int64_t out = 0;
  uint32_t calls = 1;   // in each wave
  int32_t experts = 0;  // of the whole mixture
  int32_t experts_per_group = 0;
  bool hierarchical = false;
  std::vector<uint32_t> groups;  // ascending
};

// x: the frame's, wherever it is.
absl::StatusOr<ForwardInput> DecodeForward(Backend& backend, const LayerShape& shape,
                                           v1::Mode mode, const v1::ForwardFrame& frame,
                                           const Pieces& x);
// rows: of the replica's forward frame. dy: as x.
absl::StatusOr<BackwardInput> DecodeBackward(Backend& backend, const LayerShape& shape,
                                             int64_t rows, const v1::BackwardFrame& frame,
                                             const Pieces& dy);

// One worker's close of a step.
struct CloseInput {
  struct Gradient {
    std::string shard;
    TreeNode node;
    std::vector<float> sum;
  };
  std::vector<Gradient> gradients;
  std::vector<RowGradient> row_gradients;
  // By shard.
  std::map<std::string, std::string> replica_states;
  double learning_rate = 0;
  bool cut = false;
};

// dense: floats of each hosted dense shard. replica_shards: the hosted ones among those
// of the request's replicas. Each of these and of `tables` must come exactly once, as the maximal
// nodes of those replicas.
absl::StatusOr<CloseInput> DecodeClose(const std::map<std::string, int64_t>& dense,
                                       const TableShapes& tables,
                                       std::span<const std::string> replica_shards,
                                       uint32_t replicas, v1::CloseRequest request);

}  // namespace moe
