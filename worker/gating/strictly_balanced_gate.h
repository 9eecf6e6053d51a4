#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/kernels/backend.h"
#include "worker/gating/chosen_softmax.h"
#include "worker/gating/gate.h"
#include "worker/layers/parameter.h"

namespace moe {

// Strictly balanced gating (appendix F). In training each expert takes the m = k T / n
// tokens of the micro-batch with its largest G_sigma(x)_i (eq. 18), in evaluation those
// whose G_sigma(x)_i exceeds its threshold T_i (eq. 19). A token may have 0 .. n experts;
// its gates are the softmax over them (eq. 16).
class StrictlyBalancedGate final : public Gate {
 public:
  struct Parameters {
    Parameter wg;         // [d, n]
    Parameter threshold;  // [1, n] ln T
  };

  // rows: T; m must be a whole number.
  StrictlyBalancedGate(Backend& backend, uint32_t layer_id, const Parameters& parameters,
                       int32_t k, int64_t rows, int32_t waves);

  void Forward(const Pass& pass, GateCall at, ConstMatrix x,
               std::span<const int32_t> target) override;
  const Choices& choices(GateCall at) const override { return softmax_.choices(at); }
  const GateSums& sums() const override { return softmax_.sums(); }
  // dload plays no part: in training Load is m, whatever the gate says.
  void Backward(const Pass& pass, GateCall at, ConstMatrix x,
                std::span<const float> dgate, std::span<const double> dimportance,
                std::span<const double> dload, Matrix dx) override;

 private:
  Backend& backend_;
  const uint32_t layer_id_;
  const Parameters parameters_;
  const int64_t experts_;
  const int64_t m_;
  ChosenSoftmax softmax_;
  // [waves][n] tokens of the micro-batch above each threshold.
  std::vector<std::vector<int32_t>> above_;
  Tensor log_softmax_;       // [T, n] ln G_sigma
  Array<uint8_t> chosen_;    // [T, ChosenBytes(n)]
  Array<int32_t> count_;     // [n]
  Array<float> dthreshold_;  // [n]
};

}  // namespace moe
