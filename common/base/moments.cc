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

}  // namespace moe
