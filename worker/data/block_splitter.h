// Which sentences of a text are held out.
#pragma once

#include <cstdint>

#include "worker/data/dataset_meta.h"

namespace moe {

// Cuts a text in blocks of 50 lines (fewer in a short text), each of which goes whole to
// one of the splits. Held-out blocks are spread evenly over the text, so that they
// resemble the whole, and depend on the number of lines and the fractions alone.
class BlockSplitter {
 public:
  // The fractions are those of the text that are held out, in [0, 1), and less than 1
  // together.
  BlockSplitter(int64_t lines, double validation_fraction, double test_fraction);

  // line counts from 0.
  TextSplit SplitOf(int64_t line) const;

 private:
  const uint64_t validation_end_;
  const uint64_t test_end_;
  int64_t block_lines_ = 1;
};

}  // namespace moe
