// Subnormal numbers cost a hundred cycles each and would make speed depend on data.
#pragma once

#include <immintrin.h>
#include <pmmintrin.h>

namespace moe::cpu {

// While it lives, this thread reads and writes subnormal numbers as zero.
class FlushDenormals {
 public:
  FlushDenormals() : before_(_mm_getcsr()) {
    if ((before_ & kBits) != kBits) _mm_setcsr(before_ | kBits);
  }
  ~FlushDenormals() {
    if ((before_ & kBits) != kBits) _mm_setcsr(before_);
  }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  static constexpr unsigned kBits = _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON;
  const unsigned before_;
};

}  // namespace moe::cpu
