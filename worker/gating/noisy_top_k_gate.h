#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/kernels/backend.h"
#include "worker/gating/gate.h"
#include "worker/layers/parameter.h"

namespace moe {

// The gate of one MoE layer (eq. 3-5), applied to all rows of a micro-batch at once, and
// its part in the balancing losses (eq. 6-11).
class NoisyTopKGate final : public Gate {
 public:
  struct Parameters {
    Parameter wg;      // [d, n]
    Parameter wnoise;  // [d, n]
  };

  // rows: T.
  NoisyTopKGate(Backend& backend, uint32_t layer_id, const Parameters& parameters,
                int32_t k, int64_t rows, int32_t waves);

  // In evaluation there is no noise.
  void Forward(const Pass& pass, int32_t wave, ConstMatrix x,
               std::span<const int32_t> target) override;
  const Choices& choices(int32_t wave) const override { return waves_[wave].choices; }
  void Backward(const Pass& pass, int32_t wave, ConstMatrix x,
                std::span<const float> dgate, std::span<const double> dimportance,
                std::span<const double> dload, Matrix dx) override;

 private:
  struct Wave {
    Tensor clean;              // [T, n]
    Tensor raw;                // [T, n]
    Tensor noise;              // [T, n]
    Array<int32_t> expert;     // [T, k]
    Array<float> gate;         // [T, k]
    Array<int32_t> threshold;  // [T, 2]
    Array<double> importance;  // [n]
    Array<double> load;        // [n]
    Choices choices;
  };

  GateBatch Batch(const Pass& pass, int32_t wave) const;
  void DropPadding(std::span<const int32_t> target, Choices* choices) const;

  Backend& backend_;
  const uint32_t layer_id_;
  const Parameters parameters_;
  const int32_t k_;
  const int64_t rows_;
  const int64_t experts_;
  std::vector<Wave> waves_;
  // Of the wave whose backward is running.
  Tensor dclean_;       // [T, n]
  Tensor draw_;         // [T, n]
  Array<float> dgate_;  // [T, k]
  Array<float> dload_;  // [n]
  std::vector<float> host_dgate_;
  std::vector<float> host_dload_;
};

}  // namespace moe
