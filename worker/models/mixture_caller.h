#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/kernels/backend.h"
#include "worker/gating/gate.h"
#include "worker/models/moe_call.h"

namespace moe {

// The worker's half of one mixture of experts: its gate, and what goes to the servers.
class MixtureCaller {
 public:
  // width: of the mixture's input.
  MixtureCaller(Backend& backend, std::unique_ptr<Gate> gate, const GateCalls& calls,
                int64_t width);

  // As of Gate. x: [T, width].
  void Forward(const Pass& pass, GateCall at, ConstMatrix x,
               std::span<const int32_t> target);
  // Only what Backward needs of a call whose x went to the servers before.
  void Repeat(const Pass& pass, GateCall at, ConstMatrix x);
  const MoeCall& call(GateCall at) const { return moe_calls_[calls_.PlaceOf(at)]; }
  void Backward(const Pass& pass, GateCall at, ConstMatrix x,
                std::span<const float> dgate, std::span<const double> dimportance,
                std::span<const double> dload, Matrix dx);

 private:
  Backend& backend_;
  const std::unique_ptr<Gate> gate_;
  const GateCalls calls_;
  std::vector<float> x_;  // [T, width] host copy of the last call's input
  std::vector<MoeCall> moe_calls_;
};

}  // namespace moe
