#pragma once

#include <cstdint>
#include <span>

#include "common/kernels/backend.h"
#include "worker/layers/parameter.h"

namespace moe {

// Softmax over the vocabulary and cross-entropy: logits = x w^T + b, loss = sum_t -ln
// p(target_t). Forward and gradient in one call, so that one buffer of logits serves all
// waves.
class SoftmaxLoss {
 public:
  // w: [vocabulary, d]; b: [1, vocabulary]. rows: T.
  SoftmaxLoss(Backend& backend, Parameter w, Parameter b, int64_t rows);

  // x: [T, d]; target: host, [T], -1 = not counted. Returns the sum of -ln p(target).
  double Evaluate(ConstMatrix x, std::span<const int32_t> target);
  // Also adds the parameters' gradients and writes dx [T, d], those of gradient_scale *
  // the sum.
  double Train(ConstMatrix x, std::span<const int32_t> target, float gradient_scale,
               Matrix dx);

 private:
  double Forward(ConstMatrix x, std::span<const int32_t> target, float gradient_scale);

  Backend& backend_;
  const Parameter w_;
  const Parameter b_;
  Tensor logits_;  // [T, vocabulary]
};

}  // namespace moe
