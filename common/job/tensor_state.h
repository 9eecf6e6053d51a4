// What is kept of a tensor of parameters: its elements and the optimizer's state
// (docs/design/parameters.md). For those who keep it and for those who count it.
#pragma once

#include <cstdint>

#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

struct TensorState {
  // The optimizer's; null: SGD.
  const v1::Adam* adam = nullptr;
  SecondMoment second_moment = SecondMoment::kFull;
  // Floats of Adam's moments; 0: none.
  int64_t m = 0;
  int64_t v = 0;
  int64_t parameter_bytes = 0;

  int64_t optimizer_bytes() const {
    return (m + v) * static_cast<int64_t>(sizeof(float));
  }
};

// `optimizer` outlives the result.
TensorState StateOf(const v1::Optimizer& optimizer, const TensorSpec& tensor);

// One update of the tensor, without the number of its updates and the key of its rounding.
OptimizerStep StepOf(const TensorState& state, double rate, double gradient_scale);

}  // namespace moe
