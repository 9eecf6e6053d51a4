// Mean and spread of a few numbers, in double and in their order.
#pragma once

#include <span>

namespace moe {

struct Moments {
  double mean = 0;
  double variance = 0;  // of the population
};

// Zeros if there are no values.
Moments MomentsOf(std::span<const double> values);

// Standard deviation over mean; 0 where the mean is 0.
double CoefficientOfVariation(std::span<const double> values);

}  // namespace moe
