#include "common/kernels/cpu/rows.h"

#include <algorithm>
#include <cstring>

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/simd.h"
#include "common/kernels/cpu/thread_pool.h"

namespace moe::cpu {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements
constexpr int64_t kColumnPanel = 64;

void CheckIndices(std::span<const int32_t> index, int64_t rows) {
  for (int32_t i : index) Check(i >= 0 && i < rows, "0 <= index < rows");
}

}  // namespace

void GatherRows(const Context& context, ConstMatrix x, std::span<const int32_t> index,
                const float* scale, Matrix out) {
  Check(static_cast<int64_t>(index.size()) == out.rows, "an index for each row");
  Check(x.cols == out.cols, "equal columns");
  CheckIndices(index, x.rows);
  if (out.cols == 0) return;
  ForRanges(context.parallel, out.rows, kGrain / out.cols + 1,
            [&](int64_t begin, int64_t end) {
              for (int64_t r = begin; r < end; ++r) {
                const float* from = x.row(index[r]);
                float* to = out.row(r);
                if (scale == nullptr) {
                  std::memcpy(to, from, out.cols * sizeof(float));
                } else {
                  const float factor = scale[r];
                  for (int64_t i = 0; i < out.cols; ++i) to[i] = factor * from[i];
                }
              }
            });
}

void ScatterAddRows(const Context& context, ConstMatrix x, std::span<const int32_t> index,
                    Matrix out) {
  Check(static_cast<int64_t>(index.size()) == x.rows, "an index for each row");
  Check(x.cols == out.cols, "equal columns");
  CheckIndices(index, out.rows);
  // Threads share columns, so that each element's sum stays in row order.
  const int64_t panel = x.size() < kGrain ? std::max<int64_t>(1, x.cols) : kColumnPanel;
  ForRanges(context.parallel, x.cols, panel, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < x.rows; ++r) {
      const float* from = x.row(r);
      float* to = out.row(index[r]);
      for (int64_t i = begin; i < end; ++i) to[i] += from[i];
    }
  });
}

void CombineRows(const Context& context, ConstMatrix x, std::span<const int32_t> offset,
                 std::span<const int32_t> position, const float* weight, Matrix out) {
  Check(static_cast<int64_t>(offset.size()) == out.rows + 1, "rows + 1 offsets");
  Check(x.cols == out.cols, "equal columns");
  Check(offset.front() >= 0 && offset.back() <= static_cast<int64_t>(position.size()) &&
            std::is_sorted(offset.begin(), offset.end()),
        "ascending offsets within position");
  CheckIndices(position, x.rows);
  if (out.cols == 0) return;
  const int64_t terms =
      1 + static_cast<int64_t>(position.size()) / std::max<int64_t>(1, out.rows);
  const int64_t grain = kGrain / (out.cols * terms) + 1;
  ForRanges(context.parallel, out.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* to = out.row(r);
      ForLanes(out.cols, [&](auto lanes, int64_t i) {
        Vec sum = _mm256_setzero_ps();
        for (int32_t j = offset[r]; j < offset[r + 1]; ++j) {
          const Vec w = Splat(weight != nullptr ? weight[j] : 1.0f);
          sum = _mm256_fmadd_ps(w, lanes.Load(x.row(position[j]) + i), sum);
        }
        lanes.Store(to + i, sum);
      });
    }
  });
}

}  // namespace moe::cpu
