#include "common/job/tensor_state.h"

namespace moe {
namespace {

SecondMoment KindOf(const v1::Adam& adam, const TensorSpec& tensor) {
  if (tensor.rows == 1 && !tensor.of_table) return SecondMoment::kFull;
  switch (adam.second_moment()) {
    case v1::SECOND_MOMENT_FACTORED:
      return SecondMoment::kFactored;
    case v1::SECOND_MOMENT_PER_ROW:
      return SecondMoment::kPerRow;
    default:
      return SecondMoment::kFull;
  }
}

const v1::Adam& AdamOf(const v1::Optimizer& optimizer, const TensorSpec& tensor) {
  if (tensor.of_expert && optimizer.has_experts()) return optimizer.experts();
  if (tensor.of_table && optimizer.has_tables()) return optimizer.tables();
  return optimizer.adam();
}

}  // namespace

TensorState StateOf(const v1::Optimizer& optimizer, const TensorSpec& tensor) {
  TensorState state;
  state.parameter_bytes = tensor.size() * (tensor.bfloat16 ? 2 : 4);
  if (tensor.own_rate > 0 || !optimizer.has_adam()) return state;
  state.adam = &AdamOf(optimizer, tensor);
  state.second_moment = KindOf(*state.adam, tensor);
  state.m = state.adam->beta1() > 0 ? tensor.size() : 0;
  switch (state.second_moment) {
    case SecondMoment::kFull:
      state.v = tensor.size();
      break;
    case SecondMoment::kFactored:
      state.v = tensor.rows + tensor.cols;
      break;
    case SecondMoment::kPerRow:
      state.v = tensor.rows;
      break;
  }
  return state;
}

OptimizerStep StepOf(const TensorState& state, double rate, double gradient_scale) {
  OptimizerStep step;
  if (state.adam != nullptr) {
    step.kind = OptimizerStep::Kind::kAdam;
    step.adam.beta1 = state.adam->beta1();
    step.adam.beta2 = state.adam->beta2();
    step.adam.epsilon = state.adam->epsilon();
    step.second_moment = state.second_moment;
  }
  step.adam.rate = static_cast<float>(rate);
  step.gradient_scale = static_cast<float>(gradient_scale);
  return step;
}

}  // namespace moe
