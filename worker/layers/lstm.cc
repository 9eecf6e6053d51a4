#include "worker/layers/lstm.h"

#include "glog/logging.h"

namespace moe {

Lstm::Lstm(Backend& backend, const Parameters& parameters, int32_t lanes, int32_t unroll,
           int32_t waves)
    : backend_(backend),
      parameters_(parameters),
      hidden_(parameters.b.value.cols / 4),
      recurrent_(parameters.wh.value.rows),
      lanes_(lanes),
      unroll_(unroll),
      dc_(backend, lanes, hidden_) {
  CHECK_EQ(parameters.b.value.cols, 4 * hidden_);
  CHECK_EQ(parameters.wx.value.cols, 4 * hidden_);
  CHECK_EQ(parameters.wh.value.cols, 4 * hidden_);
  if (projects()) {
    CHECK_EQ(parameters.wp.value.rows, hidden_);
    CHECK_EQ(parameters.wp.value.cols, recurrent_);
    dh_ = Tensor(backend, lanes, hidden_);
  } else {
    CHECK_EQ(recurrent_, hidden_);
  }
  const int64_t rows = lanes_ * unroll_;
  for (int32_t w = 0; w < waves; ++w) {
    Wave& wave = waves_.emplace_back();
    wave.gates = Tensor(backend, rows, 4 * hidden_);
    wave.tanh_c = Tensor(backend, rows, hidden_);
    if (projects()) wave.h = Tensor(backend, rows, hidden_);
    wave.c = Tensor(backend, lanes_ + rows, hidden_);
    wave.r = Tensor(backend, lanes_ + rows, recurrent_);
    wave.state = Tensor(backend, 1, lanes_ * (hidden_ + recurrent_));
    wave.state.Zero();
  }
}

void Lstm::Forward(int32_t wave, ConstMatrix x) {
  Wave& w = waves_[wave];
  float* const c_state = w.state.data();
  float* const r_state = c_state + lanes_ * hidden_;
  const size_t c_bytes = lanes_ * hidden_ * sizeof(float);
  const size_t r_bytes = lanes_ * recurrent_ * sizeof(float);
  backend_.Copy(c_state, w.c.data(), c_bytes);
  backend_.Copy(r_state, w.r.data(), r_bytes);

  backend_.BroadcastRow(parameters_.b.value.data, w.gates.view());
  backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, x, parameters_.wx.value, 1,
                w.gates.view());
  for (int64_t t = 0; t < unroll_; ++t) {
    const int64_t now = t * lanes_;
    const int64_t next = now + lanes_;
    const Matrix gates = w.gates.Rows(now, lanes_);
    const Matrix r = w.r.Rows(next, lanes_);
    const Matrix h = projects() ? w.h.Rows(now, lanes_) : r;
    backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, w.r.Rows(now, lanes_),
                  parameters_.wh.value, 1, gates);
    backend_.LstmCellForward(gates, w.c.Rows(now, lanes_), w.c.Rows(next, lanes_),
                             w.tanh_c.Rows(now, lanes_), h);
    if (projects()) {
      backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, h, parameters_.wp.value, 0, r);
    }
  }

  const int64_t last = unroll_ * lanes_;
  backend_.Copy(w.c.Rows(last, lanes_).data, c_state, c_bytes);
  backend_.Copy(w.r.Rows(last, lanes_).data, r_state, r_bytes);
}

ConstMatrix Lstm::output(int32_t wave) const {
  return waves_[wave].r.Rows(lanes_, unroll_ * lanes_);
}

void Lstm::Backward(int32_t wave, ConstMatrix x, Matrix dr, bool add, Matrix dx) {
  Wave& w = waves_[wave];
  dc_.Zero();
  for (int64_t t = unroll_ - 1; t >= 0; --t) {
    const int64_t now = t * lanes_;
    const Matrix dr_now = dr.Rows(now, lanes_);
    const Matrix gates = w.gates.Rows(now, lanes_);
    if (t < unroll_ - 1) {
      // dr_t += dgates_{t+1} Wh^T
      backend_.Gemm(Transpose::kNo, Transpose::kYes, 1,
                    w.gates.Rows(now + lanes_, lanes_), parameters_.wh.value, 1, dr_now);
    }
    const Matrix dh = projects() ? dh_.view() : dr_now;
    if (projects()) {
      backend_.Gemm(Transpose::kNo, Transpose::kYes, 1, dr_now, parameters_.wp.value, 0,
                    dh);
    }
    backend_.LstmCellBackward(gates, w.c.Rows(now, lanes_), w.tanh_c.Rows(now, lanes_),
                              dh, dc_.view(), gates);
  }

  const Matrix dgates = w.gates.view();
  const ConstMatrix r_before = w.r.Rows(0, unroll_ * lanes_);
  backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, x, dgates, 1,
                parameters_.wx.gradient);
  backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, r_before, dgates, 1,
                parameters_.wh.gradient);
  backend_.AddColumnSums(dgates, parameters_.b.gradient.data);
  if (projects()) {
    backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, w.h.view(), dr, 1,
                  parameters_.wp.gradient);
  }
  backend_.Gemm(Transpose::kNo, Transpose::kYes, 1, dgates, parameters_.wx.value,
                add ? 1 : 0, dx);
}

}  // namespace moe
