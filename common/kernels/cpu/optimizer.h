// Optimizer updates of one tensor or a piece of one.
#pragma once

#include <span>

#include "common/kernels/cpu/context.h"

namespace moe::cpu {

// An update with its constants worked out once.
class Optimizer {
 public:
  explicit Optimizer(const OptimizerStep& step);

  // g, w, m, v: [n]; on this thread.
  void Update(int64_t n, const float* g, float* w, float* m, float* v) const;

 private:
  void UpdateSgd(int64_t n, const float* g, float* w) const;
  void UpdateAdam(int64_t n, const float* g, float* w, float* m, float* v) const;

  const bool adam_;
  float gradient_scale_;
  float rate_;
  float beta1_;
  float beta2_;
  // rate / (1 - beta1^count) and 1 / sqrt(1 - beta2^count).
  float corrected_rate_;
  float root_correction_;
  float epsilon_;
};

void OptimizerUpdate(const Context& context, const OptimizerStep& step, int64_t n, const float* g,
                     float* w, float* m, float* v);
void UpdateRows(const Context& context, const OptimizerStep& step,
                std::span<const int32_t> index, std::span<const int64_t> count, ConstMatrix g,
                Matrix w, Matrix m, Matrix v);

}  // namespace moe::cpu
