// The remote half of a MoE layer: sends micro-batches to the expert servers and joins
// what comes back. Host memory throughout.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "client/routing_plan.h"
#include "proto/moe/v1/expert.pb.h"

namespace moe {

// One replica's part of a MoE layer call; every pointer must stay valid until the call
// returns.
struct ForwardCall {
  uint32_t replica = 0;
  const RoutingPlan* plan = nullptr;
  const float* x = nullptr;            // [T, d]
  std::span<const double> importance;  // [n] the micro-batch's sums; empty in evaluation
  std::span<const double> load;        // [n]
};
struct ForwardResult {
  uint32_t replica = 0;
  const RoutingPlan* plan = nullptr;
  float* y = nullptr;  // [T, d] out: sum over groups in group order; 0 for a token
                       // without experts
};
struct BackwardCall {
  uint32_t replica = 0;
  const RoutingPlan* plan = nullptr;
  const float* dy = nullptr;  // [T, d]
};
struct BackwardResult {
  uint32_t replica = 0;
  const RoutingPlan* plan = nullptr;
  float* dx = nullptr;     // [T, d] out: through the experts only
  float* dgate = nullptr;  // [choices of the plan] out
};
// Over all replicas and the waves so far, joined over the groups.
struct BalanceTotals {
  std::vector<double> importance;  // [n]
  std::vector<double> load;        // [n]
  uint64_t tokens = 0;
};

// Thread-compatible: one caller at a time. Sends return as soon as the frames are queued;
// awaits have a deadline, and their error names the server and what it was to send.
class ExpertClient {
 public:
  virtual ~ExpertClient() = default;

  virtual const ExpertLayout& layout(uint32_t layer) const = 0;
  virtual absl::Status SendForward(const v1::FrameId& id,
                                   std::span<const ForwardCall> calls) = 0;
  // totals may be null.
  virtual absl::Status AwaitForward(const v1::FrameId& id,
                                    std::span<const ForwardResult> results,
                                    BalanceTotals* totals) = 0;
  virtual absl::Status SendBackward(const v1::FrameId& id,
                                    std::span<const BackwardCall> calls) = 0;
  virtual absl::Status AwaitBackward(const v1::FrameId& id,
                                     std::span<const BackwardResult> results) = 0;
};

}  // namespace moe
