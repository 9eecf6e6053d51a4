#pragma once

#include <cstdint>

#include "common/kernels/backend.h"
#include "worker/layers/pass.h"

namespace moe {

// Dropout and residual of one layer's output: y = mask * x / (1 - rate) [+ residual]. In
// evaluation everything is kept.
class Dropout {
 public:
  Dropout(Backend& backend, uint32_t layer_id, float rate)
      : backend_(backend), layer_id_(layer_id), rate_(rate) {}

  // residual: added unless its data is null. y may be x.
  void Forward(const Pass& pass, int32_t wave, ConstMatrix x, ConstMatrix residual,
               Matrix y) const;
  // The gradient of x; that of the residual is dy itself. dx may be dy.
  void Backward(const Pass& pass, int32_t wave, ConstMatrix dy, Matrix dx) const;

 private:
  Backend& backend_;
  const uint32_t layer_id_;
  const float rate_;
};

}  // namespace moe
