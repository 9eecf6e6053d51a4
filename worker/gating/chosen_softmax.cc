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

ChosenSoftmax::ChosenSoftmax(Backend& backend, const Parameter& wg, int64_t rows,
                             int32_t calls)
    : backend_(backend),
      wg_(wg),
      rows_(rows),
      experts_(wg.value.cols),
      calls_(calls),
      dlogits_(backend, rows, experts_) {
  for (Call& call : calls_) {
    call.offset = Array<int32_t>(backend, rows + 1);
    call.choices.offset.resize(rows + 1);
  }
}

void ChosenSoftmax::Forward(int32_t call, ConstMatrix logits, const uint8_t* chosen) {
  Call& c = calls_[call];
  const int64_t pairs = backend_.CountChosen(rows_, experts_, chosen, c.offset.data());
  // At least one, for a call that is all padding may be the first.
  Reserve(backend_, std::max<int64_t>(pairs, 1), &c.expert);
  Reserve(backend_, std::max<int64_t>(pairs, 1), &c.gate);
  backend_.ChosenSoftmaxForward(logits, chosen, c.offset.data(), c.expert.data(),
                                c.gate.data());

  Choices& choices = c.choices;
  choices.expert.resize(pairs);
  choices.gate.resize(pairs);
  c.offset.Download(choices.offset);
  c.expert.Download(choices.expert);
  c.gate.Download(choices.gate);
  choices.importance.assign(experts_, 0);
  choices.load.assign(experts_, 0);
  for (int64_t j = 0; j < pairs; ++j) {
    choices.importance[choices.expert[j]] += choices.gate[j];
    choices.load[choices.expert[j]] += 1;
  }
}

void ChosenSoftmax::Backward(int32_t call, ConstMatrix x, std::span<const float> dgate,
                             std::span<const double> dimportance, Matrix dx) {
  const Call& c = calls_[call];
  const std::vector<int32_t>& expert = c.choices.expert;
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
  backend_.ChosenSoftmaxBackward(c.offset.data(), c.expert.data(), c.gate.data(),
                                 dgate_.data(), dlogits_.view());
  backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, x, dlogits_.view(), 1, wg_.gradient);
  backend_.Gemm(Transpose::kNo, Transpose::kYes, 1, dlogits_.view(), wg_.value, 1, dx);
}

}  // namespace moe
