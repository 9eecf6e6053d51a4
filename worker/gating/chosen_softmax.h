#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/kernels/backend.h"
#include "worker/gating/gate.h"
#include "worker/layers/parameter.h"

namespace moe {

// Gates that are the softmax of x W_g over each token's chosen experts, of which there may
// be any number: forward from what is chosen to Choices, and backward. No gradient goes
// through what is chosen.
class ChosenSoftmax {
 public:
  ChosenSoftmax(Backend& backend, const Parameter& wg, const GateCalls& calls);

  // logits: [T, n] x W_g, up to a constant for each token. chosen: as in
  // common/kernels/backend.h. Load is the number of tokens.
  void Forward(GateCall at, ConstMatrix logits, const uint8_t* chosen);
  const Choices& choices(GateCall at) const { return choices_[calls_.PlaceOf(at)]; }
  // Of the last Forward.
  const GateSums& sums() const { return sums_; }

  // As Gate::Backward.
  void Backward(GateCall at, ConstMatrix x, std::span<const float> dgate,
                std::span<const double> dimportance, Matrix dx);

 private:
  // What Backward needs of a call.
  struct Kept {
    Array<int32_t> offset;  // [T + 1]
    Array<int32_t> expert;  // [p]
    Array<float> gate;      // [p]
  };

  Backend& backend_;
  const Parameter wg_;
  const GateCalls calls_;
  const int64_t experts_;
  std::vector<Kept> kept_;
  std::vector<Choices> choices_;  // of all calls
  GateSums sums_;
  // Of the call whose backward is running.
  Array<float> dgate_;  // [p]
  Tensor dlogits_;      // [T, n]
  std::vector<float> host_dgate_;
};

}  // namespace moe
