#include "worker/data/block_splitter.h"

#include <algorithm>
#include <cmath>

namespace moe {
namespace {

constexpr int64_t kBlockLines = 50;
// So many blocks at least for the smaller held-out split.
constexpr double kMinHeldOutBlocks = 4;

uint64_t Threshold(double fraction) {
  return static_cast<uint64_t>(std::llround(std::ldexp(fraction, 32)));
}

}  // namespace

BlockSplitter::BlockSplitter(int64_t lines, double validation_fraction,
                             double test_fraction)
    : validation_end_(Threshold(validation_fraction)),
      test_end_(Threshold(validation_fraction + test_fraction)) {
  double smallest = 1;
  for (double fraction : {validation_fraction, test_fraction}) {
    if (fraction > 0) smallest = std::min(smallest, fraction);
  }
  const double lines_for_all = static_cast<double>(lines) * smallest / kMinHeldOutBlocks;
  block_lines_ = std::clamp<int64_t>(std::llround(lines_for_all), 1, kBlockLines);
}

TextSplit BlockSplitter::SplitOf(int64_t line) const {
  // Multiples of the golden ratio, modulo 1 in units of 2^-32, are spread evenly over
  // [0, 1), and so are those that fall into one interval.
  constexpr uint32_t kGoldenRatio = 0x9E3779B9;
  constexpr uint32_t kHalf = 0x80000000;  // the first block trains
  const uint32_t point =
      static_cast<uint32_t>(line / block_lines_) * kGoldenRatio + kHalf;
  if (point < validation_end_) return TextSplit::kValidation;
  return point < test_end_ ? TextSplit::kTest : TextSplit::kTrain;
}

}  // namespace moe
