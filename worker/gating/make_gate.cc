#include "glog/logging.h"
#include "worker/gating/gate.h"
#include "worker/gating/noisy_top_k_gate.h"
#include "worker/gating/softmax_gate.h"
#include "worker/gating/strictly_balanced_gate.h"

namespace moe {

std::unique_ptr<Gate> MakeGate(
    Backend& backend, uint32_t layer_id, const v1::Moe& moe,
    const std::function<Parameter(const std::string&)>& parameter,
    const GateCalls& calls) {
  switch (moe.gating()) {
    case v1::GATING_SOFTMAX:
      return std::make_unique<SoftmaxGate>(backend, parameter("wg"), calls);
    case v1::GATING_STRICTLY_BALANCED:
      CHECK_EQ(calls.calls, 1);
      return std::make_unique<StrictlyBalancedGate>(
          backend, layer_id,
          StrictlyBalancedGate::Parameters{parameter("wg"), parameter("threshold")},
          moe.k(), calls.rows, calls.waves);
    default:
      CHECK_EQ(moe.gating(), v1::GATING_NOISY_TOP_K);
      return std::make_unique<NoisyTopKGate>(
          backend, layer_id,
          NoisyTopKGate::Parameters{parameter("wg"), parameter("wnoise")},
          moe.k_primary() > 0 ? moe.k_primary() : moe.k(), calls);
  }
}

}  // namespace moe
