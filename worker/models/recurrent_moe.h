#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/job/mixtures.h"
#include "common/kernels/backend.h"
#include "worker/layers/parameter.h"
#include "worker/layers/pass.h"
#include "worker/layers/recompute_schedule.h"
#include "worker/models/mixture_caller.h"

namespace moe {

// The worker's half of a recurrent MoE (job.proto): an LSTM of H units whose two products are
// mixtures of experts,
//   z_t = (b + input(x_t)) + recurrent(h_{t-1}),
// and then the cell of Lstm (worker/layers/lstm.h). Rows are time-major; l lanes, U time steps, T = U l.
//
// Order of a wave's calls in a training step; in evaluation the forward half:
//   ForwardInput, SetInput; for t = 0 .. U-1: ForwardGate(t), Step(t)
//   BackwardOutput; for t = U-1 .. 0: [Again for all of again(t)], BackwardStep(t), BackwardGate(t);
//   BackwardInput
// Waves may take turns between any two of them.
class RecurrentMoe {
 public:
  // parameter: one of the layer's tensors by what follows "layer<l>.recurrent_moe.".
  RecurrentMoe(Backend& backend, uint32_t layer_id, const v1::RecurrentMoe& layer,
               const std::function<Parameter(const std::string&)>& parameter,
               int32_t lanes, int32_t unroll, int32_t waves);

  MixtureCaller& input() { return input_; }
  MixtureCaller& recurrent() { return recurrent_; }
  int32_t steps() const { return steps_; }

  // ---- forward
  // Lets the input mixture's gate choose. x: [T, d].
  void ForwardInput(const Pass& pass, int32_t wave, ConstMatrix x,
                    std::span<const int32_t> target);
  // y: host, [T, 4 H] what the input mixture made of it. The state carried in is that of the wave's
  // last pass.
  void SetInput(int32_t wave, std::span<const float> y);
  // Lets the recurrent mixture's gate choose for time step t. target: of the wave, [T].
  void ForwardGate(const Pass& pass, int32_t wave, int32_t t,
                   std::span<const int32_t> target);
  // y: host, [l, 4 H] what the recurrent mixture made of h_{t-1}. After the last time step the state
  // is carried out.
  void Step(int32_t wave, int32_t t, std::span<const float> y);
  // h_t of all time steps, [T, H]; valid until BackwardOutput.
  ConstMatrix output(int32_t wave) const;

  // ---- backward
  // Where dL/d output goes, [T, H].
  Matrix output_gradient(int32_t wave) const { return waves_[wave].dr.view(); }
  void BackwardOutput(int32_t wave) { waves_[wave].dc.Zero(); }
  // Time steps that Again must run before BackwardStep(t), in this order; empty if there is nothing
  // to compute again.
  std::span<const RecomputeSchedule::Run> again(int32_t t) const;
  // y: as given to Step.
  void Again(const Pass& pass, int32_t wave, const RecomputeSchedule::Run& run, bool last,
             std::span<const float> y);
  // Returns dL/dy of the recurrent mixture: host, [l, 4 H], valid until the next Backward call.
  std::span<const float> BackwardStep(int32_t wave, int32_t t);
  // dx: host, [l, H] dL/dh_{t-1} through the experts. The rest is as of Gate. Into the state that the
  // wave starts with goes no gradient.
  void BackwardGate(const Pass& pass, int32_t wave, int32_t t, std::span<const float> dx,
                    std::span<const float> dgate, std::span<const double> dimportance,
                    std::span<const double> dload);
  // Returns dL/dy of the input mixture: host, [T, 4 H], likewise.
  std::span<const float> BackwardInput(int32_t wave);

  // The state after the last time step, [1, l * 2 H]: the rows of c [l, H], then those of h [l, H].
  Tensor& state(int32_t wave) { return waves_[wave].state; }

 private:
  // Of one time step.
  struct State {
    Matrix c;  // [l, H]
    Matrix h;  // [l, H]
  };
  // Without recomputation time step t's rows of gates, tanh_c, c and h are those of all time steps;
  // with it there are the rows of one time step, of c and h of the states before and after it.
  struct Wave {
    // [T, 4 H] b + what the input mixture gave; from a time step's backward on its gradient.
    Tensor z;
    Tensor gates;   // [l, 4 H]; without recomputation it is z
    Tensor tanh_c;  // [T, H] | [l, H]
    // State t, before time step t, has the rows from t l on | from (t mod 2) l on.
    Tensor c;  // [l + T, H] | [2 l, H]
    Tensor h;  // [l + T, H] | [2 l, H]
    // [T, H] gradient of the output; with recomputation before that the output.
    Tensor dr;
    Tensor dc;                 // [l, H]
    Tensor state;              // [1, l * 2 H]
    std::vector<Tensor> kept;  // [slots] of [1, l * 2 H]; with recomputation only
  };

  bool recomputes() const { return schedule_.has_value(); }
  State StateOf(const Wave& w, int32_t t) const;
  Matrix GatesOf(const Wave& w, int32_t t) const;
  Matrix TanhOf(const Wave& w, int32_t t) const;
  void Load(const Tensor& from, const State& to) const;
  void Save(const State& from, const Tensor& to) const;
  void RunCell(Wave& w, int32_t t, std::span<const float> y);

  Backend& backend_;
  const int64_t hidden_;
  const int64_t lanes_;
  const int32_t steps_;
  const Parameter b_;  // [1, 4 H]
  std::optional<RecomputeSchedule> schedule_;
  MixtureCaller input_;
  MixtureCaller recurrent_;
  std::vector<Wave> waves_;
  Tensor rows_;  // [l, 4 H] scratch
  std::vector<float> dy_;
};

}  // namespace moe
