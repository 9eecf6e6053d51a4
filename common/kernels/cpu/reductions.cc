#include "common/kernels/cpu/reductions.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "common/kernels/cpu/simd.h"
#include "common/kernels/cpu/thread_pool.h"

namespace moe::cpu {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements
constexpr int64_t kColumnPanel = 256;
constexpr int64_t kSquareBlock = 4096;

int64_t RowGrain(int64_t cols) { return kGrain / std::max<int64_t>(1, cols) + 1; }

}  // namespace

void BroadcastRow(const Context& context, const float* row, Matrix out) {
  if (out.cols == 0) return;
  ForRanges(context.parallel, out.rows, RowGrain(out.cols),
            [&](int64_t begin, int64_t end) {
              for (int64_t r = begin; r < end; ++r)
                std::memcpy(out.row(r), row, out.cols * sizeof(float));
            });
}

void AddColumnSums(const Context& context, ConstMatrix x, float* sums) {
  // A panel's sums stay in the first-level cache while the rows stream by, four at a time.
  const int64_t panel = x.size() < kGrain ? std::max<int64_t>(1, x.cols) : kColumnPanel;
  ForRanges(context.parallel, x.cols, panel, [&](int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    for (int64_t column = begin; column < end; column += kColumnPanel) {
      const int64_t width = std::min(kColumnPanel, begin + n - column);
      alignas(32) float total[kColumnPanel] = {};
      int64_t r = 0;
      for (; r + 4 <= x.rows; r += 4) {
        const float* row = x.row(r) + column;
        ForLanes(width, [&](auto lanes, int64_t i) {
          Vec sum = _mm256_load_ps(total + i);
          for (int j = 0; j < 4; ++j)
            sum = _mm256_add_ps(sum, lanes.Load(row + j * x.stride + i));
          _mm256_store_ps(total + i, sum);
        });
      }
      for (; r < x.rows; ++r) {
        const float* row = x.row(r) + column;
        ForLanes(width, [&](auto lanes, int64_t i) {
          _mm256_store_ps(total + i,
                          _mm256_add_ps(_mm256_load_ps(total + i), lanes.Load(row + i)));
        });
      }
      for (int64_t i = 0; i < width; ++i) sums[column + i] += total[i];
    }
  });
}

void Add(const Context& context, int64_t n, const float* x, float* y) {
  ForRanges(context.parallel, n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] += x[i];
  });
}

double SquareSumOfBlock(int64_t n, const float* x) {
  __m256d low = _mm256_setzero_pd();
  __m256d high = _mm256_setzero_pd();
  ForLanes(n, [&](auto lanes, int64_t i) {
    const Vec v = lanes.Load(x + i);
    low = _mm256_fmadd_pd(LowDoubles(v), LowDoubles(v), low);
    high = _mm256_fmadd_pd(HighDoubles(v), HighDoubles(v), high);
  });
  return SumLanes(_mm256_add_pd(low, high));
}

double SquareSumOfRow(int64_t n, const float* x) {
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kSquareBlock) {
    sum += SquareSumOfBlock(std::min(kSquareBlock, n - begin), x + begin);
  }
  return sum;
}

double SquareSum(const Context& context, int64_t n, const float* x) {
  const int64_t blocks = (n + kSquareBlock - 1) / kSquareBlock;
  const Scratch<double> sums(context.scratch, blocks);
  ForRanges(
      context.parallel, blocks, kGrain / kSquareBlock, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
          const int64_t first = block * kSquareBlock;
          sums[block] = SquareSumOfBlock(std::min(kSquareBlock, n - first), x + first);
        }
      });
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += sums[block];
  return total;
}

bool AllFinite(const Context& context, ConstMatrix x) {
  std::atomic<bool> finite{true};
  const __m256i exponent = _mm256_set1_epi32(0x7F800000);
  ForRanges(context.parallel, x.rows, RowGrain(x.cols), [&](int64_t begin, int64_t end) {
    __m256i found = _mm256_setzero_si256();
    for (int64_t r = begin; r < end; ++r) {
      const float* row = x.row(r);
      ForLanes(x.cols, [&](auto lanes, int64_t i) {
        const __m256i bits = _mm256_castps_si256(lanes.Load(row + i));
        found = _mm256_or_si256(
            found, _mm256_cmpeq_epi32(_mm256_and_si256(bits, exponent), exponent));
      });
    }
    if (!_mm256_testz_si256(found, found)) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load();
}

}  // namespace moe::cpu
