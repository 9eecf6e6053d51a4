#include "worker/gating/chosen_softmax.h"

#include <algorithm>

#include "glog/logging.h"

namespace moe {
namespace {

// Only growth allocates.
template <typename T>
void Reserve(Backend& backend, int64_t size, Array<T>* array) {
  if (array->size() < size) *array = Array<T>(backend, size);
}

}  // namespace

ChosenSoftmax::ChosenSoftmax(Backend& backend, const Parameter& wg,
                             const GateCalls& calls)
    : backend_(backend),
      wg_(wg),
      calls_(calls),
      experts_(wg.value.cols),
      kept_(calls.kept()),
      choices_(calls.all()),
      dlogits_(backend, calls.rows, experts_) {
  for (Kept& kept : kept_) kept.offset = Array<int32_t>(backend, calls.rows + 1);
  for (Choices& choices : choices_) choices.offset.resize(calls.rows + 1);
}

void ChosenSoftmax::Forward(GateCall at, ConstMatrix logits, const uint8_t* chosen) {
  Kept& kept = kept_[calls_.KeptPlaceOf(at)];
  const int64_t pairs =
      backend_.CountChosen(calls_.rows, experts_, chosen, kept.offset.data());
  // At least one, for a call that is all padding may be the first.
  Reserve(backend_, std::max<int64_t>(pairs, 1), &kept.expert);
  Reserve(backend_, std::max<int64_t>(pairs, 1), &kept.gate);
  backend_.ChosenSoftmaxForward(logits, chosen, kept.offset.data(), kept.expert.data(),
                                kept.gate.data());

  Choices& choices = choices_[calls_.PlaceOf(at)];
  choices.expert.resize(pairs);
  choices.gate.resize(pairs);
  kept.offset.Download(choices.offset);
  kept.expert.Download(choices.expert);
  kept.gate.Download(choices.gate);
  sums_.importance.assign(experts_, 0);
  sums_.load.assign(experts_, 0);
  for (int64_t j = 0; j < pairs; ++j) {
    sums_.importance[choices.expert[j]] += choices.gate[j];
    sums_.load[choices.expert[j]] += 1;
  }
}

void ChosenSoftmax::Backward(GateCall at, ConstMatrix x, std::span<const float> dgate,
                             std::span<const double> dimportance, Matrix dx) {
  const Kept& kept = kept_[calls_.KeptPlaceOf(at)];
  const std::vector<int32_t>& expert = choices(at).expert;
  CHECK_EQ(dgate.size(), expert.size());
  CHECK_EQ(static_cast<int64_t>(dimportance.size()), experts_);
  // Importance_i is the sum of the gates of expert i, so its gradient is the same for
  // each of them.
  host_dgate_.resize(dgate.size());
  for (size_t j = 0; j < dgate.size(); ++j) {
    host_dgate_[j] = static_cast<float>(dgate[j] + dimportance[expert[j]]);
  }
  Reserve(backend_, static_cast<int64_t>(dgate.size()), &dgate_);
  dgate_.Upload(host_dgate_);
  backend_.ChosenSoftmaxBackward(kept.offset.data(), kept.expert.data(), kept.gate.data(),
                                 dgate_.data(), dlogits_.view());
  backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, x, dlogits_.view(), 1, wg_.gradient);
  backend_.Gemm(Transpose::kNo, Transpose::kYes, 1, dlogits_.view(), wg_.value, 1, dx);
}

}  // namespace moe
