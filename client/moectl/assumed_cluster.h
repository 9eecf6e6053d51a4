// The flags of a cluster that a command only reckons with, and what follows from them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/moectl/flag_set.h"
#include "common/job/model_plan.h"
#include "common/job/step_memory.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

class AssumedCluster {
 public:
  // required: --servers and --workers, and there is no --copies. The object outlives the flags.
  void AddFlags(bool required, FlagSet& flags);

  // --job with --vocabulary.
  absl::StatusOr<v1::Job> ReadJob() const;
  // Whether --servers or --workers was given; else none of the others may be.
  absl::StatusOr<bool> Given() const;
  // Whether the job can have such a cluster.
  absl::Status Check(const v1::Job& job) const;

  int servers() const { return servers_ > 0 ? servers_ : 1; }
  int workers() const { return workers_ > 0 ? workers_ : 1; }
  int threads() const { return threads_; }
  int64_t activation_bytes() const;

  // "server/s0" ..., "worker/w0" ..., ascending.
  static std::vector<std::string> ServerIds(int servers);
  static std::vector<std::string> WorkerIds(int workers);

  // Of this job's members in training, if they were so many. The job has its vocabulary.
  MemoryNeeds Memory(const v1::Job& job, const ModelPlan& plan, int servers,
                     int workers) const;

 private:
  std::string job_;
  int vocabulary_ = 0;
  int servers_ = 0;
  int workers_ = 0;
  int threads_ = 0;
  int copies_ = 1;
  bool disk_ = false;
  double activation_gib_ = 0;
  double copy_gib_ = 0;
};

}  // namespace moe
