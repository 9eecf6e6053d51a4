#include "worker/layers/lstm.h"

#include "glog/logging.h"

namespace moe {

Lstm::Lstm(Backend& backend, const Parameters& parameters, int32_t lanes, int32_t unroll,
           int32_t waves)
    : backend_(backend),
      parameters_(parameters),
      hidden_(parameters.wh.value.rows),
      lanes_(lanes),
      unroll_(unroll),
      dc_(backend, lanes, hidden_) {
  CHECK_EQ(parameters.wx.value.cols, 4 * hidden_);
  CHECK_EQ(parameters.wh.value.cols, 4 * hidden_);
  CHECK_EQ(parameters.b.value.size(), 4 * hidden_);
  const int64_t rows = lanes_ * unroll_;
  for (int32_t w = 0; w < waves; ++w) {
    Wave& wave = waves_.emplace_back();
    wave.gates = Tensor(backend, rows, 4 * hidden_);
    wave.tanh_c = Tensor(backend, rows, hidden_);
    wave.c = Tensor(backend, lanes_ + rows, hidden_);
    wave.h = Tensor(backend, lanes_ + rows, hidden_);
    wave.state = Tensor(backend, 2 * lanes_, hidden_);
    wave.state.Zero();
  }
}

void Lstm::Forward(int32_t wave, ConstMatrix x) {
  Wave& w = waves_[wave];
  const size_t state_bytes = lanes_ * hidden_ * sizeof(float);
  backend_.Copy(w.state.Rows(0, lanes_).data, w.c.data(), state_bytes);
  backend_.Copy(w.state.Rows(lanes_, lanes_).data, w.h.data(), state_bytes);

  backend_.BroadcastRow(parameters_.b.value.data, w.gates.view());
  backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, x, parameters_.wx.value, 1,
                w.gates.view());
  for (int64_t t = 0; t < unroll_; ++t) {
    const int64_t now = t * lanes_;
    const int64_t next = now + lanes_;
    const Matrix gates = w.gates.Rows(now, lanes_);
    backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, w.h.Rows(now, lanes_),
                  parameters_.wh.value, 1, gates);
    backend_.LstmCellForward(gates, w.c.Rows(now, lanes_), w.c.Rows(next, lanes_),
                             w.tanh_c.Rows(now, lanes_), w.h.Rows(next, lanes_));
  }

  const int64_t last = unroll_ * lanes_;
  backend_.Copy(w.c.Rows(last, lanes_).data, w.state.Rows(0, lanes_).data, state_bytes);
  backend_.Copy(w.h.Rows(last, lanes_).data, w.state.Rows(lanes_, lanes_).data,
                state_bytes);
}

ConstMatrix Lstm::output(int32_t wave) const {
  return waves_[wave].h.Rows(lanes_, unroll_ * lanes_);
}

void Lstm::Backward(int32_t wave, ConstMatrix x, Matrix dh, bool add, Matrix dx) {
  Wave& w = waves_[wave];
  dc_.Zero();
  for (int64_t t = unroll_ - 1; t >= 0; --t) {
    const int64_t now = t * lanes_;
    const Matrix dh_now = dh.Rows(now, lanes_);
    const Matrix gates = w.gates.Rows(now, lanes_);
    if (t < unroll_ - 1) {
      // dh_t += dgates_{t+1} Wh^T
      backend_.Gemm(Transpose::kNo, Transpose::kYes, 1,
                    w.gates.Rows(now + lanes_, lanes_), parameters_.wh.value, 1, dh_now);
    }
    backend_.LstmCellBackward(gates, w.c.Rows(now, lanes_), w.tanh_c.Rows(now, lanes_),
                              dh_now, dc_.view(), gates);
  }

  const Matrix dgates = w.gates.view();
  const ConstMatrix h_before = w.h.Rows(0, unroll_ * lanes_);
  backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, x, dgates, 1,
                parameters_.wx.gradient);
  backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, h_before, dgates, 1,
                parameters_.wh.gradient);
  backend_.AddColumnSums(dgates, parameters_.b.gradient.data);
  backend_.Gemm(Transpose::kNo, Transpose::kYes, 1, dgates, parameters_.wx.value,
                add ? 1 : 0, dx);
}

}  // namespace moe
