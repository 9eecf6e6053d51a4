// The remote half of a mixture of experts: sends micro-batches to the expert servers and joins
// what comes back. Host memory throughout.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "client/balance_totals.h"
#include "client/chosen_pairs.h"
#include "client/routing_plan.h"
#include "common/base/moments.h"
#include "common/job/mixtures.h"
#include "proto/moe/v1/expert.pb.h"

namespace moe {

// One replica's part of a call of a mixture; T tokens, rows of `in` and `out` numbers
// (ExpertLayout). Every pointer must stay valid until the call returns.
struct ForwardCall {
  uint32_t replica = 0;
  const RoutingPlan* plan = nullptr;
  const float* x = nullptr;  // [T, in]
  // [n] the micro-batch's sums; empty in evaluation. Hierarchical: of the primary gate,
  // [groups].
  std::span<const double> importance;
  std::span<const double> load;
};
struct ForwardResult {
  uint32_t replica = 0;
  const RoutingPlan* plan = nullptr;
  float* y = nullptr;  // [T, out] out: sum over groups in group order; 0 for a token
                       // without experts
  ChosenPairs* chosen = nullptr;  // out; hierarchical only
};
struct BackwardCall {
  uint32_t replica = 0;
  const RoutingPlan* plan = nullptr;
  const float* dy = nullptr;  // [T, out]
  // Hierarchical: of the layer over the whole step, from AwaitForward of the last wave.
  const BalanceMoments* moments = nullptr;
};
struct BackwardResult {
  uint32_t replica = 0;
  const RoutingPlan* plan = nullptr;
  // [T, in] out: through the experts only; hierarchical: and through the secondary gates.
  float* dx = nullptr;
  // [choices of the plan] out: <dL/dy, E_i(x)>; hierarchical: dL/dG_primary, with the
  // importance loss.
  float* dgate = nullptr;
  // [groups] out: dL/dLoad_primary over the whole step; hierarchical only.
  double* dload_primary = nullptr;
};
// Thread-compatible: one caller at a time. Sends return as soon as the frames are queued;
// awaits have a deadline, and their error names the server and what it was to send.
class ExpertClient {
 public:
  virtual ~ExpertClient() = default;

  virtual const ExpertLayout& layout(MixtureId mixture) const = 0;
  virtual absl::Status SendForward(const v1::FrameId& id,
                                   std::span<const ForwardCall> calls) = 0;
  // Asks for the answer of a forward that has been answered already: AwaitForward then gives the
  // same once more. The servers compute and count nothing again. replicas: of the calls.
  virtual absl::Status SendForwardAgain(const v1::FrameId& id,
                                        std::span<const uint32_t> replicas) = 0;
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
