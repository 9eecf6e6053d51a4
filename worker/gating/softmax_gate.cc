#include "worker/gating/softmax_gate.h"

#include <algorithm>

#include "glog/logging.h"

namespace moe {

SoftmaxGate::SoftmaxGate(Backend& backend, const Parameter& wg, const GateCalls& calls)
    : backend_(backend),
      wg_(wg),
      bytes_(ChosenBytes(wg.value.cols)),
      all_experts_(bytes_, 0xFF),
      softmax_(backend, wg, calls),
      logits_(backend, calls.rows, wg.value.cols),
      chosen_(backend, calls.rows * bytes_),
      host_chosen_(calls.rows * bytes_) {
  all_experts_.back() >>= 8 * bytes_ - wg.value.cols;
}

void SoftmaxGate::Forward(const Pass& pass, GateCall at, ConstMatrix x,
                          std::span<const int32_t> target) {
  backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, x, wg_.value, 0, logits_.view());
  std::fill(host_chosen_.begin(), host_chosen_.end(), 0);
  for (int64_t t = 0; t < x.rows; ++t) {
    if (!pass.training() && target[t] < 0) continue;
    std::copy(all_experts_.begin(), all_experts_.end(),
              host_chosen_.begin() + t * bytes_);
  }
  chosen_.Upload(host_chosen_);
  softmax_.Forward(at, logits_.view(), chosen_.data());
}

void SoftmaxGate::Backward(const Pass& pass, GateCall at, ConstMatrix x,
                           std::span<const float> dgate,
                           std::span<const double> dimportance, std::span<const double>,
                           Matrix dx) {
  CHECK(pass.training());
  softmax_.Backward(at, x, dgate, dimportance, dx);
}

}  // namespace moe
