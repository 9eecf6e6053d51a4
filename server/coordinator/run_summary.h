// How a run ended.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/status.pb.h"

namespace moe {

struct RunSummary {
  v1::Phase phase = v1::PHASE_UNSPECIFIED;
  std::string failure;
  // 0 if not evaluated.
  double test_perplexity = 0;
  double validation_perplexity = 0;
  // Of the last checkpoint, or of the one evaluated.
  std::string digest;
  std::string checkpoint;
  // Of the last evaluation, or of the last step if there was none.
  std::vector<v1::BalanceStatus> balance;
  uint64_t step = 0;
  double words_per_second = 0;
  // Since the workers began.
  double seconds = 0;
};

// Of a run that has finished, for people.
std::vector<std::string> SummaryLines(const std::string& job, const RunSummary& summary);

}  // namespace moe
