#include "common/kernels/cpu/top_k.h"

#include <bit>

#include "common/kernels/cpu/simd.h"

namespace moe::cpu {

void TopK(const float* value, int64_t n, int64_t k, int32_t* best, float* best_value) {
  if (k == 0) return;
  int64_t found = 0;
  const auto insert = [&](int64_t i) {
    const float v = value[i];
    int64_t at = found < k ? found++ : k - 1;
    for (; at > 0 && best_value[at - 1] < v; --at) {
      best[at] = best[at - 1];
      best_value[at] = best_value[at - 1];
    }
    best[at] = static_cast<int32_t>(i);
    best_value[at] = v;
  };
  int64_t i = 0;
  for (; i < k; ++i) insert(i);
  // Few of the rest exceed the least of the best, so whole vectors are passed over. Candidates of a
  // vector are checked again, because an earlier one of it may have raised the bar.
  for (; i + kLanes <= n; i += kLanes) {
    const Vec larger =
        _mm256_cmp_ps(_mm256_loadu_ps(value + i), Splat(best_value[k - 1]), _CMP_GT_OQ);
    for (unsigned bits = _mm256_movemask_ps(larger); bits != 0; bits &= bits - 1) {
      const int64_t candidate = i + std::countr_zero(bits);
      if (value[candidate] > best_value[k - 1]) insert(candidate);
    }
  }
  for (; i < n; ++i) {
    if (value[i] > best_value[k - 1]) insert(i);
  }
}

}  // namespace moe::cpu
