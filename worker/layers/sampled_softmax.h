#pragma once

#include <cstdint>
#include <span>

#include "common/kernels/backend.h"

namespace moe {

// Softmax and cross-entropy over a step's candidates and each token's own target
// (importance sampling, Jozefowicz et al. 2016): every logit x w + b less the logarithm of the word's
// expected count among the candidates; a target that is a candidate counts once. Forward and gradient
// in one call, over blocks of kSampledSoftmaxTokens tokens: logits of one block are there at a time,
// and only meanwhile.
class SampledSoftmax {
 public:
  // Some rows of the softmax's table: w [n, d]; b [n], less the expected counts' logarithms.
  struct Rows {
    ConstMatrix w;
    const float* b = nullptr;
  };
  struct Gradients {
    Matrix w;            // [n, d]
    float* b = nullptr;  // [n]
  };
  // Of one micro-batch of T tokens; host memory.
  struct Targets {
    // [T] row of the target among the targets' rows; -1: not counted.
    std::span<const int32_t> row;
    // [T] the candidate that is the target's word, or -1.
    std::span<const int32_t> candidate;
  };

  explicit SampledSoftmax(Backend& backend) : backend_(backend) {}

  // Adds to the gradients and writes dx [T, d]: those of gradient_scale times the sum over tokens of
  // -ln p(target), which is returned.
  double Train(ConstMatrix x, const Rows& candidates, const Rows& targets,
               const Targets& of, float gradient_scale, const Gradients& dcandidates,
               const Gradients& dtargets, Matrix dx);

 private:
  // The same of one block; logits: [T of the block, candidates + 1], the target's last.
  double TrainBlock(ConstMatrix x, const Rows& candidates, const Rows& targets,
                    const Targets& of, float gradient_scale, const Gradients& dcandidates,
                    const Gradients& dtargets, Matrix dx, Matrix logits);

  Backend& backend_;
};

}  // namespace moe
