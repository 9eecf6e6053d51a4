#include "common/job/footprint.h"

#include <cmath>

namespace moe {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kSmallPage = int64_t{4} << 10;
// Where a large array begins in its memory, at most (common/kernels/cpu/memory.cc).
constexpr int64_t kOffset = int64_t{65} << 10;

}  // namespace

Footprint HostFloats(double floats) {
  return {.heap = std::llround(floats) * static_cast<int64_t>(sizeof(float))};
}

Footprint ArrayOf(double floats) {
  const Footprint host = HostFloats(floats);
  if (host.heap < kHugePage) return host;
  return {.pages = (host.heap + kOffset + kSmallPage - 1) / kSmallPage * kSmallPage};
}

}  // namespace moe
