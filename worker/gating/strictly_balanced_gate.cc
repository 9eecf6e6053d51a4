#include "worker/gating/strictly_balanced_gate.h"

#include <algorithm>

#include "common/random/random.h"
#include "glog/logging.h"

namespace moe {
namespace {

// Bounds what one micro-batch, of which far too many tokens pass, does to a threshold.
constexpr double kMostExcess = 4;

}  // namespace

StrictlyBalancedGate::StrictlyBalancedGate(Backend& backend, uint32_t layer_id,
                                           const Parameters& parameters, int32_t k,
                                           int64_t rows, int32_t waves)
    : backend_(backend),
      layer_id_(layer_id),
      parameters_(parameters),
      experts_(parameters.wg.value.cols),
      m_(k * rows / experts_),
      softmax_(backend, parameters.wg, {.rows = rows, .waves = waves}),
      above_(waves, std::vector<int32_t>(experts_)),
      log_softmax_(backend, rows, experts_),
      chosen_(backend, rows * ChosenBytes(experts_)),
      count_(backend, experts_),
      dthreshold_(backend, experts_) {
  CHECK_EQ(m_ * experts_, k * rows);
}

void StrictlyBalancedGate::Forward(const Pass& pass, GateCall at, ConstMatrix x,
                                   std::span<const int32_t> target) {
  backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, x, parameters_.wg.value, 0,
                log_softmax_.view());
  backend_.LogSoftmax(log_softmax_.view());
  const float* threshold = parameters_.threshold.value.data;
  if (pass.training()) {
    backend_.ChooseLargest(log_softmax_.view(), m_,
                           pass.Key(Purpose::kGateTie, layer_id_, at.wave),
                           chosen_.data());
    backend_.CountAbove(log_softmax_.view(), threshold, count_.data());
    count_.Download(above_[at.wave]);
  } else {
    backend_.ChooseAbove(log_softmax_.view(), threshold, target, chosen_.data());
  }
  softmax_.Forward(at, log_softmax_.view(), chosen_.data());
}

void StrictlyBalancedGate::Backward(const Pass& pass, GateCall at, ConstMatrix x,
                                    std::span<const float> dgate,
                                    std::span<const double> dimportance,
                                    std::span<const double>, Matrix dx) {
  CHECK(pass.training());
  CHECK_GT(pass.tokens, 0);
  softmax_.Backward(at, x, dgate, dimportance, dx);
  // The derivative of L_batchwise (eq. 20, in the logarithms of X and T) divided by m, as
  // this micro-batch's share of a mean over the step.
  const double share = static_cast<double>(x.rows) / static_cast<double>(pass.tokens);
  std::vector<float> dthreshold;
  for (const int32_t above : above_[at.wave]) {
    const double relative = static_cast<double>(m_ - above) / static_cast<double>(m_);
    dthreshold.push_back(static_cast<float>(share * std::max(relative, -kMostExcess)));
  }
  dthreshold_.Upload(dthreshold);
  backend_.Add(experts_, dthreshold_.data(), parameters_.threshold.gradient.data);
}

}  // namespace moe
