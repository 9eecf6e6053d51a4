#include "common/kernels/cpu/lstm_cell.h"

#include <initializer_list>

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/thread_pool.h"
#include "common/kernels/cpu/vector_math.h"

namespace moe::cpu {
namespace {

constexpr int64_t kGrain = 1 << 12;  // units

void CheckShapes(ConstMatrix gates, std::initializer_list<ConstMatrix> states) {
  for (const ConstMatrix& x : states) {
    Check(x.rows == gates.rows && 4 * x.cols == gates.cols,
          "[B, H] states and [B, 4H] gates");
  }
}

}  // namespace

void LstmCellForward(const Context& context, Matrix gates, ConstMatrix c_prev, Matrix c,
                     Matrix tanh_c, Matrix h) {
  CheckShapes(gates, {c_prev, c, tanh_c, h});
  const int64_t units = h.cols;
  if (units == 0) return;
  ForRanges(
      context.parallel, h.rows, kGrain / units + 1, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          float* in = gates.row(r);
          float* forget = in + units;
          float* candidate = forget + units;
          float* out = candidate + units;
          ForLanes(units, [&](auto lanes, int64_t u) {
            const Vec vi = Sigmoid(lanes.Load(in + u));
            const Vec vf = Sigmoid(lanes.Load(forget + u));
            const Vec vg = Tanh(lanes.Load(candidate + u));
            const Vec vo = Sigmoid(lanes.Load(out + u));
            const Vec vc =
                _mm256_fmadd_ps(vf, lanes.Load(c_prev.row(r) + u), _mm256_mul_ps(vi, vg));
            const Vec vt = Tanh(vc);
            lanes.Store(in + u, vi);
            lanes.Store(forget + u, vf);
            lanes.Store(candidate + u, vg);
            lanes.Store(out + u, vo);
            lanes.Store(c.row(r) + u, vc);
            lanes.Store(tanh_c.row(r) + u, vt);
            lanes.Store(h.row(r) + u, _mm256_mul_ps(vo, vt));
          });
        }
      });
}

void LstmCellBackward(const Context& context, ConstMatrix gates, ConstMatrix c_prev,
                      ConstMatrix tanh_c, ConstMatrix dh, Matrix dc, Matrix dgates) {
  CheckShapes(gates, {c_prev, tanh_c, dh, dc});
  CheckShapes(dgates, {dh});
  const int64_t units = dh.cols;
  if (units == 0) return;
  const Vec one = Splat(1);
  const auto sigmoid_slope = [&](Vec y) {
    return _mm256_mul_ps(y, _mm256_sub_ps(one, y));
  };
  const auto tanh_slope = [&](Vec y) { return _mm256_fmadd_ps(Negate(y), y, one); };
  ForRanges(
      context.parallel, dh.rows, 4 * kGrain / units + 1, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const float* in = gates.row(r);
          float* to = dgates.row(r);
          ForLanes(units, [&](auto lanes, int64_t u) {
            const Vec vi = lanes.Load(in + u);
            const Vec vf = lanes.Load(in + units + u);
            const Vec vg = lanes.Load(in + 2 * units + u);
            const Vec vo = lanes.Load(in + 3 * units + u);
            const Vec vt = lanes.Load(tanh_c.row(r) + u);
            const Vec vdh = lanes.Load(dh.row(r) + u);
            const Vec dcell = _mm256_fmadd_ps(_mm256_mul_ps(vdh, vo), tanh_slope(vt),
                                              lanes.Load(dc.row(r) + u));
            const Vec di = _mm256_mul_ps(_mm256_mul_ps(dcell, vg), sigmoid_slope(vi));
            const Vec df = _mm256_mul_ps(
                _mm256_mul_ps(dcell, lanes.Load(c_prev.row(r) + u)), sigmoid_slope(vf));
            const Vec dg = _mm256_mul_ps(_mm256_mul_ps(dcell, vi), tanh_slope(vg));
            const Vec d_out = _mm256_mul_ps(_mm256_mul_ps(vdh, vt), sigmoid_slope(vo));
            lanes.Store(to + u, di);
            lanes.Store(to + units + u, df);
            lanes.Store(to + 2 * units + u, dg);
            lanes.Store(to + 3 * units + u, d_out);
            lanes.Store(dc.row(r) + u, _mm256_mul_ps(dcell, vf));
          });
        }
      });
}

}  // namespace moe::cpu
