// Partial selection.
#pragma once

#include <cstdint>

namespace moe::cpu {

// The indices of the k largest of value[0 ... n), largest first; among equals the lower index comes
// first. 0 <= k <= n. best: [k] out; best_value: [k] out.
void TopK(const float* value, int64_t n, int64_t k, int32_t* best, float* best_value);

}  // namespace moe::cpu
