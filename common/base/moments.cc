#include "common/base/moments.h"

#include <cmath>

namespace moe {

Moments MomentsOf(std::span<const double> values) {
  Moments moments;
  if (values.empty()) return moments;
  const double n = static_cast<double>(values.size());
  for (double value : values) moments.mean += value;
  moments.mean /= n;
  for (double value : values) {
    moments.variance += (value - moments.mean) * (value - moments.mean);
  }
  moments.variance /= n;
  return moments;
}

double CoefficientOfVariation(std::span<const double> values) {
  const auto [mean, variance] = MomentsOf(values);
  return mean == 0 ? 0 : std::sqrt(variance) / mean;
}

}  // namespace moe
