#include <cmath>
#include <initializer_list>

#include "common/kernels/cuda/activations.h"
#include "common/kernels/cuda/device_math.h"
#include "common/kernels/cuda/elements.h"
#include "common/random/element.h"

namespace moe::cuda {
namespace {

bool SameShape(ConstMatrix a, ConstMatrix b) {
  return a.rows == b.rows && a.cols == b.cols;
}

struct SigmoidBody {
  ConstView x;
  View y;
  __device__ void operator()(int64_t r, int64_t c) const {
    y.row(r)[c] = Sigmoid(x.row(r)[c]);
  }
};

struct SigmoidBackwardBody {
  ConstView y, dy;
  View dx;
  __device__ void operator()(int64_t r, int64_t c) const {
    const float value = y.row(r)[c];
    dx.row(r)[c] = dy.row(r)[c] * (value * (1 - value));
  }
};

// A thread has the four columns of one block of random words.
struct DropoutBody {
  RandomKey key;
  float factor;
  uint32_t threshold;  // an element survives if its 24 bits are at least that
  ConstView x, residual;
  View y;
  __device__ void operator()(int64_t r, int64_t block) const {
    std::array<uint32_t, 4> bits = {};
    if (threshold > 0) bits = BlockOfBits(key, r, block);
    const int64_t begin = 4 * block;
    for (int64_t c = begin; c < begin + 4 && c < y.cols; ++c) {
      const bool keep = bits[c - begin] >> 8 >= threshold;
      const float value = keep ? x.row(r)[c] * factor : 0;
      y.row(r)[c] = residual.data == nullptr ? value : value + residual.row(r)[c];
    }
  }
};

void Dropout(const Context& context, RandomKey key, float rate, ConstMatrix x,
             ConstMatrix residual, Matrix y) {
  Check(rate >= 0 && rate < 1, "0 <= rate < 1");
  Check(SameShape(x, y), "equal shapes");
  Check(residual.data == nullptr || SameShape(residual, y), "equal shapes");
  const auto threshold =
      static_cast<uint32_t>(std::lround(static_cast<double>(rate) * (1 << 24)));
  ForEachElement(context, y.rows, (y.cols + 3) / 4,
                 DropoutBody{key, 1 / (1 - rate), threshold, x, residual, y});
}

struct LstmForwardBody {
  View gates;
  ConstView c_prev;
  View c, tanh_c, h;
  __device__ void operator()(int64_t r, int64_t u) const {
    const int64_t units = h.cols;
    float* const gate = gates.row(r) + u;
    const float in = Sigmoid(gate[0]);
    const float forget = Sigmoid(gate[units]);
    const float candidate = Tanh(gate[2 * units]);
    const float out = Sigmoid(gate[3 * units]);
    const float cell = fmaf(forget, c_prev.row(r)[u], in * candidate);
    const float squashed = Tanh(cell);
    gate[0] = in;
    gate[units] = forget;
    gate[2 * units] = candidate;
    gate[3 * units] = out;
    c.row(r)[u] = cell;
    tanh_c.row(r)[u] = squashed;
    h.row(r)[u] = out * squashed;
  }
};

struct LstmBackwardBody {
  ConstView gates, c_prev, tanh_c, dh;
  View dc, dgates;
  __device__ void operator()(int64_t r, int64_t u) const {
    const int64_t units = dh.cols;
    const float* const gate = gates.row(r) + u;
    const float in = gate[0];
    const float forget = gate[units];
    const float candidate = gate[2 * units];
    const float out = gate[3 * units];
    const float squashed = tanh_c.row(r)[u];
    const float gradient = dh.row(r)[u];
    const float dcell =
        fmaf(gradient * out, fmaf(-squashed, squashed, 1.0f), dc.row(r)[u]);
    float* const to = dgates.row(r) + u;
    to[0] = dcell * candidate * (in * (1 - in));
    to[units] = dcell * c_prev.row(r)[u] * (forget * (1 - forget));
    to[2 * units] = dcell * in * fmaf(-candidate, candidate, 1.0f);
    to[3 * units] = gradient * squashed * (out * (1 - out));
    dc.row(r)[u] = dcell * forget;
  }
};

void CheckShapes(ConstMatrix gates, std::initializer_list<ConstMatrix> states) {
  for (const ConstMatrix& x : states) {
    Check(x.rows == gates.rows && 4 * x.cols == gates.cols,
          "[B, H] states and [B, 4H] gates");
  }
}

}  // namespace

void SigmoidForward(const Context& context, ConstMatrix x, Matrix y) {
  Check(SameShape(x, y), "equal shapes");
  ForEachElement(context, y.rows, y.cols, SigmoidBody{x, y});
}

void SigmoidBackward(const Context& context, ConstMatrix y, ConstMatrix dy, Matrix dx) {
  Check(SameShape(y, dx) && SameShape(dy, dx), "equal shapes");
  ForEachElement(context, dx.rows, dx.cols, SigmoidBackwardBody{y, dy, dx});
}

void DropoutForward(const Context& context, RandomKey key, float rate, ConstMatrix x,
                    ConstMatrix residual, Matrix y) {
  Dropout(context, key, rate, x, residual, y);
}

void DropoutBackward(const Context& context, RandomKey key, float rate, ConstMatrix dy,
                     Matrix dx) {
  Dropout(context, key, rate, dy, ConstMatrix(), dx);
}

void LstmCellForward(const Context& context, Matrix gates, ConstMatrix c_prev, Matrix c,
                     Matrix tanh_c, Matrix h) {
  CheckShapes(gates, {c_prev, c, tanh_c, h});
  ForEachElement(context, h.rows, h.cols, LstmForwardBody{gates, c_prev, c, tanh_c, h});
}

void LstmCellBackward(const Context& context, ConstMatrix gates, ConstMatrix c_prev,
                      ConstMatrix tanh_c, ConstMatrix dh, Matrix dc, Matrix dgates) {
  CheckShapes(gates, {c_prev, tanh_c, dh, dc});
  CheckShapes(dgates, {dh});
  ForEachElement(context, dh.rows, dh.cols,
                 LstmBackwardBody{gates, c_prev, tanh_c, dh, dc, dgates});
}

}  // namespace moe::cuda
