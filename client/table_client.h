// Table shards as a worker sees them (job.proto, Tables). Host memory throughout.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job/model_plan.h"

namespace moe {

// One replica's part of an evaluation's softmax; every pointer must stay valid until the
// call returns.
struct ScoreCall {
  uint32_t replica = 0;
  const float* x = nullptr;         // [T, d] the softmax's input
  std::span<const int32_t> target;  // [T] words; -1: not counted
};

enum class PullFor { kTraining, kEvaluation };

// Thread-compatible: one caller at a time. Sends return as soon as the messages are queued;
// awaits have a deadline, and their error names the server and what it was to send.
class TableClient {
 public:
  virtual ~TableClient() = default;

  // Floats of a row: d, and one more (the bias) of the softmax.
  virtual int64_t columns(Table table) const = 0;

  // Rows of `words` (ascending), which may be none.
  virtual absl::Status SendPull(uint64_t version, PullFor purpose, Table table,
                                std::span<const int32_t> words) = 0;
  // out: [words, columns].
  virtual absl::Status AwaitPull(uint64_t version, Table table,
                                 std::span<const int32_t> words,
                                 std::span<float> out) = 0;

  // The sum of -ln p(target) of each call, under the softmax over all words of `version`. batch,
  // wave: of the evaluation, for messages.
  virtual absl::StatusOr<std::vector<double>> Score(uint64_t batch, uint32_t wave,
                                                    uint64_t version,
                                                    std::span<const ScoreCall> calls) = 0;
};

}  // namespace moe
