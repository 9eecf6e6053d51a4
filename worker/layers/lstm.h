#pragma once

#include <cstdint>
#include <vector>

#include "common/kernels/backend.h"
#include "worker/layers/parameter.h"

namespace moe {

// LSTM without peepholes and without projection. Gates in the order input, forget,
// candidate, output:
//   (i, f, g, o) = x_t Wx + h_{t-1} Wh + b;  c_t = sigm(f) c_{t-1} + sigm(i) tanh(g);
//   h_t = sigm(o) tanh(c_t).
// The state is carried from call to call; the gradient is cut at the call's first time
// step. Rows are time-major: row = t * lanes + lane.
class Lstm {
 public:
  struct Parameters {
    Parameter wx;  // [d, 4 H]
    Parameter wh;  // [H, 4 H]
    Parameter b;   // [1, 4 H]
  };

  // lanes: of one wave.
  Lstm(Backend& backend, const Parameters& parameters, int32_t lanes, int32_t unroll,
       int32_t waves);

  // x: [unroll * lanes, d].
  void Forward(int32_t wave, ConstMatrix x);
  // h_t of all time steps, [unroll * lanes, H]; valid until the next Forward of the wave.
  ConstMatrix output(int32_t wave) const;
  // Once after each Forward, with the same x. dh: [unroll * lanes, H] dL/d output,
  // destroyed. dx = [dx +] dL/dx: added to what is there if `add`.
  void Backward(int32_t wave, ConstMatrix x, Matrix dh, bool add, Matrix dx);

  // The state after the last time step: [2 lanes, H], the rows of c, then those of h.
  Tensor& state(int32_t wave) { return waves_[wave].state; }
  const Tensor& state(int32_t wave) const { return waves_[wave].state; }

 private:
  struct Wave {
    Tensor gates;   // [T, 4 H] activations; the backward turns them into gradients
    Tensor tanh_c;  // [T, H]
    // Time step t's rows begin at row (t + 1) * lanes; before them those of the state
    // carried in.
    Tensor c;      // [lanes + T, H]
    Tensor h;      // [lanes + T, H]
    Tensor state;  // [2 lanes, H]
  };

  Backend& backend_;
  const Parameters parameters_;
  const int64_t hidden_;
  const int64_t lanes_;
  const int64_t unroll_;
  std::vector<Wave> waves_;
  Tensor dc_;  // [lanes, H]
};

}  // namespace moe
