// Mean and variance of a few numbers, whole or joined from parts, in double and in their
// order; and what balances a mixture of experts by them.
#pragma once

#include <cstdint>
#include <span>

namespace moe {

struct Moments {
  double mean = 0;
  double variance = 0;  // of the population
  friend bool operator==(const Moments&, const Moments&) = default;
};

// Zeros if there are no values.
Moments MomentsOf(std::span<const double> values);

// Standard deviation over mean; 0 where the mean is 0.
double CoefficientOfVariation(const Moments& moments);
double CoefficientOfVariation(std::span<const double> values);
// Its square, CV^2 of eq. 7 and 11.
double CvSquared(const Moments& moments);
// w times dCV^2/dvalue of one of the `count` values with these moments; 0 where the mean
// is 0.
double CvSquaredGradient(const Moments& moments, int64_t count, double w, double value);

// Of `count` values: what parts must tell of themselves to be joined without their values.
struct Spread {
  int64_t count = 0;
  double mean = 0;
  double m2 = 0;  // sum (value - mean)^2

  // Zeros if there are no values.
  Moments moments() const;
};
Spread SpreadOf(std::span<const double> values);
// Of the values of both (Chan et al. 1979). Rounds by the order of joining.
Spread Join(const Spread& a, const Spread& b);
// Whether `count` values from 0 to `most` with the moments `all` can hold such a part;
// rounding is allowed for.
bool MayContain(const Moments& all, int64_t count, double most, const Spread& part);

// Of a MoE layer's Importance and Load (eq. 6 and 10; hierarchical: eq. 13 and 14).
struct BalanceMoments {
  Moments importance;
  Moments load;
  friend bool operator==(const BalanceMoments&, const BalanceMoments&) = default;
};

}  // namespace moe
