// A job's one server and one worker in one process, without a coordinator and without a network: messages
// are handed over as they are.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "proto/moe/v1/job.pb.h"
#include "tests/bench/pace.h"

namespace moe {

struct LoneClusterOptions {
  // As ReadJobFile gives it.
  v1::Job job;
  // Prepared text.
  std::string data;
  // Of the server and of the worker, which seldom work at the same time.
  int threads = 1;
};

// Trains until it is destroyed, at the pace; the pace outlives it.
class LoneCluster {
 public:
  static absl::StatusOr<std::unique_ptr<LoneCluster>> Start(
      const LoneClusterOptions& options, Pace& pace);
  virtual ~LoneCluster() = default;
};

}  // namespace moe
