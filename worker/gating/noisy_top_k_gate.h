#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/kernels/backend.h"
#include "worker/gating/gate.h"
#include "worker/layers/parameter.h"

namespace moe {

// The gate of one mixture (eq. 3-5), applied to all rows of a call at once, and its part in the
// balancing losses (eq. 6-11). The noise of a token is that of its place in the micro-batch.
class NoisyTopKGate final : public Gate {
 public:
  struct Parameters {
    Parameter wg;      // [d, n]
    Parameter wnoise;  // [d, n]
  };

  NoisyTopKGate(Backend& backend, uint32_t layer_id, const Parameters& parameters,
                int32_t k, const GateCalls& calls);

  // In evaluation there is no noise.
  void Forward(const Pass& pass, GateCall at, ConstMatrix x,
               std::span<const int32_t> target) override;
  const Choices& choices(GateCall at) const override {
    return choices_[calls_.PlaceOf(at)];
  }
  const GateSums& sums() const override { return sums_; }
  void Backward(const Pass& pass, GateCall at, ConstMatrix x,
                std::span<const float> dgate, std::span<const double> dimportance,
                std::span<const double> dload, Matrix dx) override;

 private:
  // What Backward needs of a call.
  struct Kept {
    Tensor clean;              // [T, n]
    Tensor raw;                // [T, n]
    Tensor noise;              // [T, n]
    Array<int32_t> expert;     // [T, k]
    Array<float> gate;         // [T, k]
    Array<int32_t> threshold;  // [T, 2]
  };

  GateBatch Batch(const Pass& pass, GateCall at) const;
  void DropPadding(std::span<const int32_t> target, Choices* choices);

  Backend& backend_;
  const uint32_t layer_id_;
  const Parameters parameters_;
  const int32_t k_;
  const GateCalls calls_;
  const int64_t rows_;
  const int64_t experts_;
  std::vector<Kept> kept_;
  std::vector<Choices> choices_;  // of all calls
  // Of the last Forward.
  Array<double> importance_;  // [n]
  Array<double> load_;        // [n]
  GateSums sums_;
  std::vector<int32_t> draw_row_;  // 0, 1, .. of all tokens of a micro-batch
  // Of the call whose backward is running.
  Tensor dclean_;       // [T, n]
  Tensor draw_;         // [T, n]
  Array<float> dgate_;  // [T, k]
  Array<float> dload_;  // [n]
  std::vector<float> host_dgate_;
  std::vector<float> host_dload_;
};

}  // namespace moe
