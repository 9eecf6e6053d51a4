// The files of the One Billion Word Language Model Benchmark (Chelba et al. 2013,
// arXiv:1312.3005), as its archive unpacks: tokenised sentences, one a line, shuffled.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace moe {

struct OneBillionWords {
  static constexpr int kHeldOutShards = 50;
  // The published vocabulary has every word that the training text has so often.
  static constexpr int kMinCount = 3;

  std::vector<std::string> train;       // shards 1 to 99 of 100
  std::vector<std::string> validation;  // held-out shards 1 to validation_shards
  std::vector<std::string> test;  // held-out shard 0, on which results are published
};

// The benchmark's files below `folder`, which holds training-monolingual.tokenized.shuffled
// and heldout-monolingual.tokenized.shuffled. NOT_FOUND, with names, if some are missing;
// INVALID_ARGUMENT unless 1 <= validation_shards <= 49.
absl::StatusOr<OneBillionWords> FindOneBillionWords(const std::string& folder,
                                                    int validation_shards);

}  // namespace moe
