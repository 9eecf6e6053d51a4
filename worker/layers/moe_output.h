#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/kernels/backend.h"

namespace moe {

// What the worker does with the experts' combined output y = sum_i G(x)_i E_i(x): the
// logistic sigmoid, if the layer has one. It is also where the rows of a MoE layer come
// from the host and their gradients go back to it.
class MoeOutput {
 public:
  MoeOutput(Backend& backend, bool sigmoid, int64_t rows, int64_t cols, int32_t waves);

  // y: host, [T, d].
  void Forward(int32_t wave, std::span<const float> y);
  // [T, d]; valid until the next Forward of the wave.
  ConstMatrix output(int32_t wave) const { return outputs_[wave].view(); }
  // doutput: [T, d], destroyed. Returns dL/dy: host, [T, d], valid until the next
  // Backward.
  std::span<const float> Backward(int32_t wave, Matrix doutput);

 private:
  Backend& backend_;
  const bool sigmoid_;
  Tensor y_;  // [T, d]
  std::vector<Tensor> outputs_;
  std::vector<float> gradient_;
};

}  // namespace moe
