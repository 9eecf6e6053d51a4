#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/kernels/backend.h"
#include "worker/gating/chosen_softmax.h"
#include "worker/gating/gate.h"
#include "worker/layers/parameter.h"

namespace moe {

// G(x) = Softmax(x W_g) (eq. 2): every expert for every token, without noise.
class SoftmaxGate final : public Gate {
 public:
  // wg: [d, n].
  SoftmaxGate(Backend& backend, const Parameter& wg, const GateCalls& calls);

  void Forward(const Pass& pass, GateCall at, ConstMatrix x,
               std::span<const int32_t> target) override;
  const Choices& choices(GateCall at) const override { return softmax_.choices(at); }
  const GateSums& sums() const override { return softmax_.sums(); }
  // dload plays no part: Load is the number of tokens, whatever the gate says.
  void Backward(const Pass& pass, GateCall at, ConstMatrix x,
                std::span<const float> dgate, std::span<const double> dimportance,
                std::span<const double> dload, Matrix dx) override;

 private:
  Backend& backend_;
  const Parameter wg_;
  const int64_t bytes_;  // of a token's choices
  std::vector<uint8_t> all_experts_;
  ChosenSoftmax softmax_;
  Tensor logits_;          // [T, n]
  Array<uint8_t> chosen_;  // [T, bytes]
  std::vector<uint8_t> host_chosen_;
};

}  // namespace moe
