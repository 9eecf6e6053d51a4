// How long a training step takes on a cluster of hosts that are as fast as one says, and what it
// waits for (docs/design/cost.md). The step is played through as members take it: segments and waves in
// their order, a call when all replicas have sent their frames, the close at the end.
//
// Servers are as fast as each other, and so are workers. Each piece of a step is that of the member
// that takes longest for it, since all others wait for it there.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/job/host_speed.h"
#include "common/job/model_plan.h"
#include "common/job/step_timeline.h"
#include "common/job/step_traffic.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

struct ClusterSpeed {
  HostSpeed server;
  HostSpeed worker;
  // From one host to another, one way, in seconds.
  double latency = 0;
  // Of each member; 0: as many as there is work for. With one thread a member computes nothing while
  // messages come and go.
  int threads = 0;
};

// What one host does in a step.
struct HostCost {
  StepBytes bytes;
  // Seconds of its work, if nothing had to wait: computing, packing and unpacking messages, and of its
  // network in the direction that takes longer.
  double computing = 0;
  double messages = 0;
  double network = 0;
};

struct StepCost {
  double seconds = 0;
  double tokens = 0;
  // What the step's end waited for; the sum is `seconds`.
  CauseTimes path;
  // In the order of `servers` and `workers`.
  std::vector<HostCost> servers;
  std::vector<HostCost> workers;
  double tokens_per_second() const { return tokens / seconds; }
};

// servers: the shards of each; workers: the replicas of each, ascending. activation_bytes: as of
// ServerLimits (step_memory.h).
// The job is valid and has its vocabulary; its speeds are greater than 0.
StepCost ComputeStepCost(const v1::Job& job, const ModelPlan& plan,
                         std::span<const std::vector<ShardSpec>> servers,
                         std::span<const std::vector<uint32_t>> workers,
                         const ClusterSpeed& speed, int64_t activation_bytes = 0);

}  // namespace moe
