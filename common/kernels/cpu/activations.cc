#include "common/kernels/cpu/activations.h"

#include <cmath>

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/thread_pool.h"
#include "common/kernels/cpu/vector_math.h"

namespace moe::cpu {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements

bool SameShape(ConstMatrix a, ConstMatrix b) {
  return a.rows == b.rows && a.cols == b.cols;
}

template <typename Fn>
void ForRows(const Context& context, ConstMatrix shape, const Fn& fn) {
  if (shape.cols == 0) return;
  ForRanges(context.parallel, shape.rows, kGrain / shape.cols + 1,
            [&](int64_t begin, int64_t end) {
              for (int64_t r = begin; r < end; ++r) fn(r);
            });
}

void Dropout(const Context& context, RandomKey key, float rate, ConstMatrix x,
             ConstMatrix residual, Matrix y) {
  Check(rate >= 0 && rate < 1, "0 <= rate < 1");
  Check(SameShape(x, y), "equal shapes");
  Check(residual.data == nullptr || SameShape(residual, y), "equal shapes");
  if (y.cols == 0) return;
  const Vec factor = Splat(1 / (1 - rate));
  // An element survives if its uniform number, a multiple of 2^-24, is at least the rate.
  const int threshold =
      static_cast<int>(std::lround(static_cast<double>(rate) * (1 << 24)));
  const __m256i last_dropped = _mm256_set1_epi32(threshold - 1);
  const auto row = [&](int64_t r, const uint32_t* bits) {
    const float* from = x.row(r);
    float* to = y.row(r);
    const auto masked = [&](auto lanes, int64_t i) {
      const Vec v = _mm256_mul_ps(lanes.Load(from + i), factor);
      if (bits == nullptr) return v;
      // Beyond the end of a row lie bits of the scratch buffer; their lanes aren't stored.
      const __m256i draw = _mm256_srli_epi32(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits + i)), 8);
      const __m256i keep = _mm256_cmpgt_epi32(draw, last_dropped);
      return _mm256_and_ps(v, _mm256_castsi256_ps(keep));
    };
    if (residual.data == nullptr) {
      ForLanes(y.cols,
               [&](auto lanes, int64_t i) { lanes.Store(to + i, masked(lanes, i)); });
    } else {
      const float* add = residual.row(r);
      ForLanes(y.cols, [&](auto lanes, int64_t i) {
        lanes.Store(to + i, _mm256_add_ps(masked(lanes, i), lanes.Load(add + i)));
      });
    }
  };
  if (threshold == 0) return ForRows(context, y, [&](int64_t r) { row(r, nullptr); });
  ForRanges(context.parallel, y.rows, kGrain / y.cols + 1,
            [&](int64_t begin, int64_t end) {
              const Scratch<uint32_t> bits(context.scratch, y.cols + kLanes);
              for (int64_t r = begin; r < end; ++r) {
                FillBits(key, r, {bits.data(), static_cast<size_t>(y.cols)});
                row(r, bits.data());
              }
            });
}

}  // namespace

void SigmoidForward(const Context& context, ConstMatrix x, Matrix y) {
  Check(SameShape(x, y), "equal shapes");
  ForRows(context, y, [&](int64_t r) {
    const float* from = x.row(r);
    float* to = y.row(r);
    ForLanes(y.cols, [&](auto lanes, int64_t i) {
      lanes.Store(to + i, Sigmoid(lanes.Load(from + i)));
    });
  });
}

void SigmoidBackward(const Context& context, ConstMatrix y, ConstMatrix dy, Matrix dx) {
  Check(SameShape(y, dx) && SameShape(dy, dx), "equal shapes");
  ForRows(context, dx, [&](int64_t r) {
    const float* out = y.row(r);
    const float* from = dy.row(r);
    float* to = dx.row(r);
    ForLanes(dx.cols, [&](auto lanes, int64_t i) {
      const Vec v = lanes.Load(out + i);
      const Vec slope = _mm256_mul_ps(v, _mm256_sub_ps(Splat(1), v));
      lanes.Store(to + i, _mm256_mul_ps(lanes.Load(from + i), slope));
    });
  });
}

void DropoutForward(const Context& context, RandomKey key, float rate, ConstMatrix x,
                    ConstMatrix residual, Matrix y) {
  Dropout(context, key, rate, x, residual, y);
}

void DropoutBackward(const Context& context, RandomKey key, float rate, ConstMatrix dy,
                     Matrix dx) {
  Dropout(context, key, rate, dy, ConstMatrix(), dx);
}

}  // namespace moe::cpu
