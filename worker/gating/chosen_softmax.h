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
  // rows: T.
  ChosenSoftmax(Backend& backend, const Parameter& wg, int64_t rows, int32_t waves);

  // logits: [T, n] x W_g, up to a constant for each token. chosen: as in
  // common/kernels/backend.h. Load is the number of tokens.
  void Forward(int32_t wave, ConstMatrix logits, const uint8_t* chosen);
  const Choices& choices(int32_t wave) const { return waves_[wave].choices; }

  // As Gate::Backward.
  void Backward(int32_t wave, ConstMatrix x, std::span<const float> dgate,
                std::span<const double> dimportance, Matrix dx);

 private:
  struct Wave {
    Array<int32_t> offset;  // [T + 1]
    Array<int32_t> expert;  // [p]
    Array<float> gate;      // [p]
    Choices choices;
  };

  Backend& backend_;
  const Parameter wg_;
  const int64_t rows_;
  const int64_t experts_;
  std::vector<Wave> waves_;
  // Of the wave whose backward is running.
  Array<float> dgate_;  // [p]
  Tensor dlogits_;      // [T, n]
  std::vector<float> host_dgate_;
};

}  // namespace moe
