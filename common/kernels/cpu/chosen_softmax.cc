#include "common/kernels/cpu/chosen_softmax.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/thread_pool.h"
#include "common/kernels/cpu/vector_math.h"

namespace moe::cpu {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements

}  // namespace

int64_t CountChosen(int64_t tokens, int64_t n, const uint8_t* chosen, int32_t* offset) {
  const int64_t bytes = ChosenBytes(n);
  int64_t pairs = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    offset[t] = static_cast<int32_t>(pairs);
    for (int64_t b = t * bytes; b < (t + 1) * bytes; ++b)
      pairs += std::popcount(chosen[b]);
    Check(pairs <= std::numeric_limits<int32_t>::max(), "pairs fit in 32 bits");
  }
  offset[tokens] = static_cast<int32_t>(pairs);
  return pairs;
}

void ChosenSoftmaxForward(const Context& context, ConstMatrix x, const uint8_t* chosen,
                          const int32_t* offset, int32_t* expert, float* gate) {
  const int64_t bytes = ChosenBytes(x.cols);
  ForRanges(
      context.parallel, x.rows, kGrain / (x.cols + 1) + 1,
      [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          const float* row = x.row(t);
          int64_t j = offset[t];
          float max = -std::numeric_limits<float>::infinity();
          for (int64_t b = 0; b < bytes; ++b) {
            for (unsigned bits = chosen[t * bytes + b]; bits != 0; bits &= bits - 1) {
              const int64_t i = 8 * b + std::countr_zero(bits);
              expert[j] = static_cast<int32_t>(i);
              gate[j++] = row[i];
              max = std::max(max, row[i]);
            }
          }
          float* const terms = gate + offset[t];
          const int64_t count = j - offset[t];
          ForLanes(count, [&](auto lanes, int64_t i) {
            lanes.Store(terms + i, Exp(_mm256_sub_ps(lanes.Load(terms + i), Splat(max))));
          });
          double sum = 0;
          for (int64_t i = 0; i < count; ++i) sum += terms[i];
          for (int64_t i = 0; i < count; ++i) {
            terms[i] = static_cast<float>(terms[i] / sum);
          }
        }
      });
}

void ChosenSoftmaxBackward(const Context& context, const int32_t* offset,
                           const int32_t* expert, const float* gate, const float* dgate,
                           Matrix dx) {
  ForRanges(context.parallel, dx.rows, kGrain / (dx.cols + 1) + 1,
            [&](int64_t begin, int64_t end) {
              for (int64_t t = begin; t < end; ++t) {
                float* row = dx.row(t);
                std::memset(row, 0, dx.cols * sizeof(float));
                double mean = 0;
                for (int64_t j = offset[t]; j < offset[t + 1]; ++j) {
                  mean += static_cast<double>(gate[j]) * dgate[j];
                }
                for (int64_t j = offset[t]; j < offset[t + 1]; ++j) {
                  row[expert[j]] = static_cast<float>(gate[j] * (dgate[j] - mean));
                }
              }
            });
}

}  // namespace moe::cpu
