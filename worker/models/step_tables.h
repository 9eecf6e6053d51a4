// The rows of the embedding and softmax tables that one pass of one replica touches, and
// their gradients (job.proto, Tables). On the backend unless said otherwise.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/kernels/backend.h"
#include "common/tensor/replica_tree.h"
#include "worker/layers/candidates.h"

namespace moe {

// Some rows of one table.
struct TableRows {
  std::vector<int32_t> words;  // host
  Tensor w;                    // [words, d]
  // [words] less LogExpectedCount; the embedding has none.
  Array<float> b;
};

// `words` without repetitions, ascending; -1 is left out.
std::vector<int32_t> DistinctWords(std::vector<int32_t> words);
// Place of a word in ascending `words`, which must have it.
int32_t PlaceOf(std::span<const int32_t> words, int32_t word);

// What all replicas of a worker share in a training step.
struct StepCandidates {
  Candidates candidates;
  TableRows rows;                               // in the order in which they were drawn
  absl::flat_hash_map<int32_t, int32_t> place;  // of a word among them
};

struct StepTables {
  TableRows input;  // ascending
  // Training only.
  std::shared_ptr<const StepCandidates> candidates;
  TableRows target;  // ascending
};

// Of the rows of StepTables, in their order.
struct TableGradients {
  Tensor input;
  Tensor candidate_w;
  Array<float> candidate_b;
  Tensor target_w;
  Array<float> target_b;
};

// Zero gradients for the rows of `tables`.
TableGradients ZeroGradients(Backend& backend, const StepTables& tables, int64_t d);

// As the servers take them: `row` is the word, and `value` has d columns, of the softmax d + 1, w
// and b. A word that is candidate and target has the sum of both.
SparseRows EmbeddingGradients(const StepTables& tables, const TableGradients& gradients);
SparseRows SoftmaxGradients(const StepTables& tables, const TableGradients& gradients);

}  // namespace moe
