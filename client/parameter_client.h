// Dense and replica shards, and the close of a step, as a worker sees them. Host memory
// throughout.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/tensor/replica_tree.h"

namespace moe {

// What one worker brings to the end of a step.
struct StepClose {
  uint64_t step = 0;
  double learning_rate = 0;
  // This worker wants one; it is taken if all do.
  bool cut = false;
  // Servers may have to write some of a cut before this one before they apply the step.
  bool cut_under_way = false;
  // For each owned replica, ascending: for each dense shard (in the plan's order) the
  // gradients of its tensors, concatenated. Consumed.
  std::map<uint32_t, std::vector<std::vector<float>>> gradients;
  // With tables: for each owned replica the gradients of the rows that it touched; `row` is
  // the word. Consumed.
  std::map<uint32_t, SparseRows> embedding_gradients;
  std::map<uint32_t, SparseRows> softmax_gradients;
  // For each owned replica, its replica shard's new content.
  std::map<uint32_t, std::string> replica_states;
};

struct StepClosed {
  // Norm over all gradients before clipping; 0 if the job doesn't clip.
  double gradient_norm = 0;
  // A cut was taken.
  bool cut = false;
};

// Thread-compatible: one caller at a time. Every wait has a deadline, and its error names
// the server and what it was to send.
class ParameterClient {
 public:
  virtual ~ParameterClient() = default;

  // Contents of all dense shards at `version`, in the plan's order, each with its tensors
  // concatenated; the spans' sizes say what is expected.
  virtual absl::Status PullDense(uint64_t version,
                                 std::span<const std::span<float>> shards) = 0;
  virtual absl::StatusOr<std::string> PullReplicaState(uint64_t version,
                                                       uint32_t replica) = 0;
  // Closes the step on every server and returns when all have applied it, the exchange
  // that clipping needs included.
  virtual absl::StatusOr<StepClosed> Close(StepClose close) = 0;
};

}  // namespace moe
