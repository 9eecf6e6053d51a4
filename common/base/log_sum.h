// Sums of exponentials that would overflow.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace moe {

// The sum of e^x over some numbers x, as e^largest * sum.
struct LogSum {
  double largest = -std::numeric_limits<double>::infinity();
  double sum = 0;

  // Adds e^other_largest * other_sum; not commutative to the bit.
  void Add(double other_largest, double other_sum) {
    const double most = std::max(largest, other_largest);
    // Both may be -infinity at first.
    const double before = sum == 0 ? 0 : sum * std::exp(largest - most);
    sum = before + other_sum * std::exp(other_largest - most);
    largest = most;
  }
  double Log() const { return largest + std::log(sum); }
};

}  // namespace moe
