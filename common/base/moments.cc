#include "common/base/moments.h"

#include <cmath>

namespace moe {

Moments MomentsOf(std::span<const double> values) { return SpreadOf(values).moments(); }

double CoefficientOfVariation(const Moments& moments) {
  const auto [mean, variance] = moments;
  return mean == 0 ? 0 : std::sqrt(variance) / mean;
}

double CoefficientOfVariation(std::span<const double> values) {
  return CoefficientOfVariation(MomentsOf(values));
}

double CvSquared(const Moments& moments) {
  const auto [mean, variance] = moments;
  return mean * mean == 0 ? 0 : variance / (mean * mean);
}

double CvSquaredGradient(const Moments& moments, int64_t count, double w, double value) {
  const auto [mean, variance] = moments;
  if (mean * mean == 0) return 0;
  const double scale = 2 / (static_cast<double>(count) * mean * mean);
  return w * scale * ((value - mean) - variance / mean);
}

Moments Spread::moments() const {
  if (count == 0) return {};
  return {mean, m2 / static_cast<double>(count)};
}

Spread SpreadOf(std::span<const double> values) {
  Spread spread;
  if (values.empty()) return spread;
  spread.count = static_cast<int64_t>(values.size());
  for (double value : values) spread.mean += value;
  spread.mean /= static_cast<double>(spread.count);
  for (double value : values) {
    spread.m2 += (value - spread.mean) * (value - spread.mean);
  }
  return spread;
}

Spread Join(const Spread& a, const Spread& b) {
  if (a.count == 0) return b;
  if (b.count == 0) return a;
  const double of_a = static_cast<double>(a.count);
  const double of_b = static_cast<double>(b.count);
  const double both = of_a + of_b;
  const double delta = b.mean - a.mean;
  Spread joined;
  joined.count = a.count + b.count;
  joined.mean = a.mean + delta * (of_b / both);
  joined.m2 = a.m2 + b.m2 + delta * delta * (of_a * of_b / both);
  return joined;
}

bool MayContain(const Moments& all, int64_t count, double most, const Spread& part) {
  constexpr double kRounding = 1e-9;
  const double of_all = static_cast<double>(count);
  const double of_part = static_cast<double>(part.count);
  const double of_rest = of_all - of_part;
  // Comparisons are false for a NaN. In a range, m2 is at most that of values at its ends.
  const auto possible = [most](double n, double sum, double m2, double sum_slack,
                               double m2_slack) {
    const double mean = n > 0 ? sum / n : 0;
    return sum >= -sum_slack && sum <= n * most + sum_slack && m2 >= -m2_slack &&
           m2 <= n * mean * (most - mean) + m2_slack;
  };
  const double range = of_all * most;
  if (of_rest < 0 || !possible(of_all, of_all * all.mean, of_all * all.variance,
                               kRounding * range, kRounding * range * most)) {
    return false;
  }
  // What is left for the other values.
  const double sum = of_all * all.mean - of_part * part.mean;
  const double from_part = part.mean - all.mean;
  const double from_rest = of_rest > 0 ? sum / of_rest - all.mean : 0;
  const double m2 = of_all * all.variance - part.m2 - of_part * from_part * from_part -
                    of_rest * from_rest * from_rest;
  return possible(of_rest, sum, m2, kRounding * of_all * all.mean,
                  kRounding * of_all * (all.variance + all.mean * all.mean));
}

}  // namespace moe
