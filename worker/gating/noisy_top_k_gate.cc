#include "worker/gating/noisy_top_k_gate.h"

#include <algorithm>
#include <utility>

#include "common/random/random.h"
#include "glog/logging.h"

namespace moe {

NoisyTopKGate::NoisyTopKGate(Backend& backend, uint32_t layer_id,
                             const Parameters& parameters, int32_t k, int64_t rows,
                             int32_t waves)
    : backend_(backend),
      layer_id_(layer_id),
      parameters_(parameters),
      k_(k),
      rows_(rows),
      experts_(parameters.wg.value.cols),
      dclean_(backend, rows, experts_),
      draw_(backend, rows, experts_),
      dgate_(backend, rows * k),
      dload_(backend, experts_),
      host_dgate_(rows * k),
      host_dload_(experts_) {
  CHECK_LE(k, experts_);
  for (int32_t w = 0; w < waves; ++w) {
    Wave& wave = waves_.emplace_back();
    wave.clean = Tensor(backend, rows, experts_);
    wave.raw = Tensor(backend, rows, experts_);
    wave.noise = Tensor(backend, rows, experts_);
    wave.expert = Array<int32_t>(backend, rows * k);
    wave.gate = Array<float>(backend, rows * k);
    wave.threshold = Array<int32_t>(backend, rows * 2);
    wave.importance = Array<double>(backend, experts_);
    wave.load = Array<double>(backend, experts_);
    wave.choices.importance.resize(experts_);
    wave.choices.load.resize(experts_);
  }
}

GateBatch NoisyTopKGate::Batch(const Pass& pass, int32_t wave) const {
  const Wave& w = waves_[wave];
  GateBatch batch;
  batch.clean = w.clean.view();
  batch.raw = w.raw.view();
  batch.noise = w.noise.view();
  batch.k = k_;
  batch.with_noise = pass.training();
  batch.key = pass.Key(Purpose::kGateNoise, layer_id_, wave);
  batch.expert = w.expert.data();
  batch.gate = w.gate.data();
  batch.threshold = w.threshold.data();
  batch.importance = w.importance.data();
  batch.load = w.load.data();
  return batch;
}

void NoisyTopKGate::Forward(const Pass& pass, int32_t wave, ConstMatrix x,
                            std::span<const int32_t> target) {
  Wave& w = waves_[wave];
  backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, x, parameters_.wg.value, 0,
                w.clean.view());
  if (pass.training()) {
    backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, x, parameters_.wnoise.value, 0,
                  w.raw.view());
  }
  backend_.NoisyTopKForward(Batch(pass, wave));

  w.choices.offset.resize(rows_ + 1);
  for (int64_t t = 0; t <= rows_; ++t) {
    w.choices.offset[t] = static_cast<int32_t>(t * k_);
  }
  w.choices.expert.resize(rows_ * k_);
  w.choices.gate.resize(rows_ * k_);
  w.expert.Download(w.choices.expert);
  w.gate.Download(w.choices.gate);
  w.importance.Download(w.choices.importance);
  w.load.Download(w.choices.load);
  if (!pass.training()) DropPadding(target, &w.choices);
}

void NoisyTopKGate::DropPadding(std::span<const int32_t> target, Choices* choices) const {
  CHECK_EQ(static_cast<int64_t>(target.size()), rows_);
  if (std::find(target.begin(), target.end(), -1) == target.end()) return;
  std::fill(choices->importance.begin(), choices->importance.end(), 0);
  std::fill(choices->load.begin(), choices->load.end(), 0);
  int32_t kept = 0;
  for (int64_t t = 0; t < rows_; ++t) {
    choices->offset[t] = kept;
    if (target[t] < 0) continue;
    for (int64_t j = t * k_; j < (t + 1) * k_; ++j, ++kept) {
      const int32_t expert = choices->expert[kept] = choices->expert[j];
      const float gate = choices->gate[kept] = choices->gate[j];
      choices->importance[expert] += gate;
      choices->load[expert] += 1;
    }
  }
  choices->offset[rows_] = kept;
  choices->expert.resize(kept);
  choices->gate.resize(kept);
}

void NoisyTopKGate::Backward(const Pass& pass, int32_t wave, ConstMatrix x,
                             std::span<const float> dgate,
                             std::span<const double> dimportance,
                             std::span<const double> dload, Matrix dx) {
  CHECK(pass.training());
  CHECK_EQ(dgate.size(), host_dgate_.size());
  CHECK_EQ(dimportance.size(), host_dload_.size());
  CHECK_EQ(dload.size(), host_dload_.size());
  const std::vector<int32_t>& expert = waves_[wave].choices.expert;
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
  backend_.NoisyTopKBackward(Batch(pass, wave), dgate_.data(),
                             load_matters ? dload_.data() : nullptr, dclean_.view(),
                             draw_.view());

  for (const auto& [parameter, dlogits] : {std::pair(parameters_.wg, dclean_.view()),
                                           std::pair(parameters_.wnoise, draw_.view())}) {
    backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, x, dlogits, 1, parameter.gradient);
    backend_.Gemm(Transpose::kNo, Transpose::kYes, 1, dlogits, parameter.value, 1, dx);
  }
}

}  // namespace moe
