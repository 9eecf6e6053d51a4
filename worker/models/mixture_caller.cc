#include "worker/models/mixture_caller.h"

#include <utility>

namespace moe {

MixtureCaller::MixtureCaller(Backend& backend, std::unique_ptr<Gate> gate,
                             const GateCalls& calls, int64_t width)
    : backend_(backend),
      gate_(std::move(gate)),
      calls_(calls),
      x_(calls.rows * width),
      moe_calls_(calls.all()) {}

void MixtureCaller::Forward(const Pass& pass, GateCall at, ConstMatrix x,
                            std::span<const int32_t> target) {
  gate_->Forward(pass, at, x, target);
  backend_.Download(x.data, x_.data(), x.size() * sizeof(float));

  const Choices& choices = gate_->choices(at);
  MoeCall& call = moe_calls_[calls_.PlaceOf(at)];
  call.offset = choices.offset;
  call.expert = choices.expert;
  call.gate = choices.gate;
  call.x = x_;
  call.importance = gate_->sums().importance;
  call.load = gate_->sums().load;
}

void MixtureCaller::Repeat(const Pass& pass, GateCall at, ConstMatrix x) {
  gate_->Forward(pass, at, x, /*target=*/{});
}

void MixtureCaller::Backward(const Pass& pass, GateCall at, ConstMatrix x,
                             std::span<const float> dgate,
                             std::span<const double> dimportance,
                             std::span<const double> dload, Matrix dx) {
  gate_->Backward(pass, at, x, dgate, dimportance, dload, dx);
}

}  // namespace moe
