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
  // rows: T. calls: of all waves.
  ChosenSoftmax(Backend& backend, const Parameter& wg, int64_t rows, int32_t calls);

  // logits: [T, n] x W_g, up to a constant for each token. chosen: as in
  // common/kernels/backend.h. Load is the number of tokens.
  // call: among all.
  void Forward(int32_t call, ConstMatrix logits, const uint8_t* chosen);
  const Choices& choices(int32_t call) const { return calls_[call].choices; }

  // As Gate::Backward.
  void Backward(int32_t call, ConstMatrix x, std::span<const float> dgate,
                std::span<const double> dimportance, Matrix dx);

 private:
  struct Call {
    Array<int32_t> offset;  // [T + 1]
    Array<int32_t> expert;  // [p]
    Array<float> gate;      // [p]
    Choices choices;
  };

  Backend& backend_;
  const Parameter wg_;
  const int64_t rows_;
  const int64_t experts_;
  std::vector<Call> calls_;
  // Of the call whose backward is running.
  Array<float> dgate_;  // [p]
  Tensor dlogits_;      // [T, n]
  std::vector<float> host_dgate_;
};

}  // namespace moe
