#pragma once

#include <cstdint>
#include <vector>

#include "common/kernels/backend.h"
#include "worker/layers/parameter.h"

namespace moe {

// LSTM without peepholes, with or without an output projection (Sak et al. 2014). Gates in
// the order input, forget, candidate, output:
//   (i, f, g, o) = x_t Wx + r_{t-1} Wh + b;  c_t = sigm(f) c_{t-1} + sigm(i) tanh(g);
//   h_t = sigm(o) tanh(c_t);  r_t = h_t Wp, or h_t without a projection.
// r recurs and is the output. The state is carried from call to call; the gradient is cut
// at the call's first time step. Rows are time-major: row = t * lanes + lane.
class Lstm {
 public:
  // H units, R = the projection's width, or H.
  struct Parameters {
    Parameter wx;  // [d, 4 H]
    Parameter wh;  // [R, 4 H]
    Parameter b;   // [1, 4 H]
    Parameter wp;  // [H, R]; empty: no projection
  };

  // lanes: of one wave.
  Lstm(Backend& backend, const Parameters& parameters, int32_t lanes, int32_t unroll,
       int32_t waves);

  // x: [unroll * lanes, d].
  void Forward(int32_t wave, ConstMatrix x);
  // r_t of all time steps, [unroll * lanes, R]; valid until the next Forward of the wave.
  ConstMatrix output(int32_t wave) const;
  // Once after each Forward, with the same x. dr: [unroll * lanes, R] dL/d output,
  // destroyed. dx = [dx +] dL/dx: added to what is there if `add`.
  void Backward(int32_t wave, ConstMatrix x, Matrix dr, bool add, Matrix dx);

  // The state after the last time step, [1, lanes * (H + R)]: the rows of c [lanes, H],
  // then those of r [lanes, R].
  Tensor& state(int32_t wave) { return waves_[wave].state; }
  const Tensor& state(int32_t wave) const { return waves_[wave].state; }

 private:
  struct Wave {
    Tensor gates;   // [T, 4 H] activations; the backward turns them into gradients
    Tensor tanh_c;  // [T, H]
    Tensor h;       // [T, H]; with a projection only
    // Time step t's rows begin at row (t + 1) * lanes; before them those of the state
    // carried in.
    Tensor c;      // [lanes + T, H]
    Tensor r;      // [lanes + T, R]
    Tensor state;  // [1, lanes * (H + R)]
  };

  bool projects() const { return parameters_.wp.value.size() > 0; }

  Backend& backend_;
  const Parameters parameters_;
  const int64_t hidden_;     // H
  const int64_t recurrent_;  // R
  const int64_t lanes_;
  const int64_t unroll_;
  std::vector<Wave> waves_;
  Tensor dc_;  // [lanes, H]
  Tensor dh_;  // [lanes, H]; with a projection only
};

}  // namespace moe
