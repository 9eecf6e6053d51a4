#include "worker/gating/noisy_top_k_gate.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "common/random/random.h"
#include "glog/logging.h"

namespace moe {

NoisyTopKGate::NoisyTopKGate(Backend& backend, uint32_t layer_id,
                             const Parameters& parameters, int32_t k,
                             const GateCalls& calls)
    : backend_(backend),
      layer_id_(layer_id),
      parameters_(parameters),
      k_(k),
      calls_(calls),
      rows_(calls.rows),
      experts_(parameters.wg.value.cols),
      choices_(calls.all()),
      importance_(backend, experts_),
      load_(backend, experts_),
      sums_{std::vector<double>(experts_), std::vector<double>(experts_)},
      draw_row_(rows_ * calls.calls),
      dclean_(backend, rows_, experts_),
      draw_(backend, rows_, experts_),
      dgate_(backend, rows_ * k),
      dload_(backend, experts_),
      host_dgate_(rows_ * k),
      host_dload_(experts_) {
  CHECK_LE(k, experts_);
  std::iota(draw_row_.begin(), draw_row_.end(), 0);
  for (int32_t i = 0; i < calls.kept(); ++i) {
    Kept& kept = kept_.emplace_back();
    kept.clean = Tensor(backend, rows_, experts_);
    kept.raw = Tensor(backend, rows_, experts_);
    kept.noise = Tensor(backend, rows_, experts_);
    kept.expert = Array<int32_t>(backend, rows_ * k);
    kept.gate = Array<float>(backend, rows_ * k);
    kept.threshold = Array<int32_t>(backend, rows_ * 2);
  }
}

GateBatch NoisyTopKGate::Batch(const Pass& pass, GateCall at) const {
  const Kept& kept = kept_[calls_.KeptPlaceOf(at)];
  GateBatch batch;
  batch.clean = kept.clean.view();
  batch.raw = kept.raw.view();
  batch.noise = kept.noise.view();
  batch.k = k_;
  batch.with_noise = pass.training();
  batch.key = pass.Key(calls_.noise, layer_id_, at.wave);
  batch.draw_row = std::span(draw_row_).subspan(at.call * rows_, rows_);
  batch.expert = kept.expert.data();
  batch.gate = kept.gate.data();
  batch.threshold = kept.threshold.data();
  batch.importance = importance_.data();
  batch.load = load_.data();
  return batch;
}

void NoisyTopKGate::Forward(const Pass& pass, GateCall at, ConstMatrix x,
                            std::span<const int32_t> target) {
  Kept& kept = kept_[calls_.KeptPlaceOf(at)];
  backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, x, parameters_.wg.value, 0,
                kept.clean.view());
  if (pass.training()) {
    backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, x, parameters_.wnoise.value, 0,
                  kept.raw.view());
  }
  backend_.NoisyTopKForward(Batch(pass, at));

  Choices& choices = choices_[calls_.PlaceOf(at)];
  choices.offset.resize(rows_ + 1);
  for (int64_t t = 0; t <= rows_; ++t) {
    choices.offset[t] = static_cast<int32_t>(t * k_);
  }
  choices.expert.resize(rows_ * k_);
  choices.gate.resize(rows_ * k_);
  kept.expert.Download(choices.expert);
  kept.gate.Download(choices.gate);
  importance_.Download(sums_.importance);
  load_.Download(sums_.load);
  if (!pass.training()) DropPadding(target, &choices);
}

void NoisyTopKGate::DropPadding(std::span<const int32_t> target, Choices* choices) {
  CHECK_EQ(static_cast<int64_t>(target.size()), rows_);
  if (std::find(target.begin(), target.end(), -1) == target.end()) return;
  std::fill(sums_.importance.begin(), sums_.importance.end(), 0);
  std::fill(sums_.load.begin(), sums_.load.end(), 0);
  int32_t kept = 0;
  for (int64_t t = 0; t < rows_; ++t) {
    choices->offset[t] = kept;
    if (target[t] < 0) continue;
    for (int64_t j = t * k_; j < (t + 1) * k_; ++j, ++kept) {
      const int32_t expert = choices->expert[kept] = choices->expert[j];
      const float gate = choices->gate[kept] = choices->gate[j];
      sums_.importance[expert] += gate;
      sums_.load[expert] += 1;
    }
  }
  choices->offset[rows_] = kept;
  choices->expert.resize(kept);
  choices->gate.resize(kept);
}

void NoisyTopKGate::Backward(const Pass& pass, GateCall at, ConstMatrix x,
                             std::span<const float> dgate,
                             std::span<const double> dimportance,
                             std::span<const double> dload, Matrix dx) {
  CHECK(pass.training());
  CHECK_EQ(dgate.size(), host_dgate_.size());
  CHECK_EQ(dimportance.size(), host_dload_.size());
  CHECK_EQ(dload.size(), host_dload_.size());
  const std::vector<int32_t>& expert = choices(at).expert;
  // Importance_i is the sum of the gates of expert i, so its gradient is the same for
  // each of them.
  for (size_t j = 0; j < dgate.size(); ++j) {
    host_dgate_[j] = static_cast<float>(dgate[j] + dimportance[expert[j]]);
  }
  dgate_.Upload(host_dgate_);
  // With k == n every token loads every expert, whatever the gate says.
  const bool load_matters = k_ < experts_;
  if (load_matters) {
    std::copy(dload.begin(), dload.end(), host_dload_.begin());
    dload_.Upload(host_dload_);
  }
  backend_.NoisyTopKBackward(Batch(pass, at), dgate_.data(),
                             load_matters ? dload_.data() : nullptr, dclean_.view(),
                             draw_.view());

  for (const auto& [parameter, dlogits] : {std::pair(parameters_.wg, dclean_.view()),
                                           std::pair(parameters_.wnoise, draw_.view())}) {
    backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, x, dlogits, 1, parameter.gradient);
    backend_.Gemm(Transpose::kNo, Transpose::kYes, 1, dlogits, parameter.value, 1, dx);
  }
}

}  // namespace moe
