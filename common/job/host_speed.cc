#include "common/job/host_speed.h"

#include <algorithm>

namespace moe {
namespace {

// Copying an operand's or a result's element, in floating-point operations of a large product.
constexpr double kPacked = 24;
// As kernels without AVX-512 did when docs/results/plan.md was measured, and how much slower than a large product it is where the
// weights come fast enough.
constexpr double kFewRows = 12;
constexpr double kFewRowsShare = 0.75;

}  // namespace

Effort Piece(const HostSpeed& speed, double flops, double bytes) {
  const double arithmetic = flops / speed.flops;
  const double memory = bytes / speed.memory;
  return arithmetic >= memory ? Effort{arithmetic, 0} : Effort{0, memory};
}

Effort ProductEffort(const HostSpeed& speed, double rows, double cols, double inner,
                     double weight_bytes) {
  const double packed = rows * inner + inner * cols + rows * cols;
  return Piece(speed, 2 * rows * cols * inner + kPacked * packed,
               weight_bytes * cols * inner);
}

Effort ExpertProductEffort(const HostSpeed& speed, double rows, double cols, double inner,
                           double weight_bytes) {
  if (rows > kFewRows) return ProductEffort(speed, rows, cols, inner, weight_bytes);
  return Piece(speed, 2 * rows * cols * inner / kFewRowsShare,
               weight_bytes * cols * inner);
}

Effort ElementEffort(const HostSpeed& speed, double elements, double cost) {
  return {elements * cost / speed.flops, 0};
}

}  // namespace moe
