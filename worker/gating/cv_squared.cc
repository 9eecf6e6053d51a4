#include "worker/gating/cv_squared.h"

#include <cstddef>

namespace moe {

namespace {

struct Moments {
  double mean = 0;
  double variance = 0;  // of the population
};

Moments MomentsOf(std::span<const double> v) {
  Moments moments;
  if (v.empty()) return moments;
  const double n = static_cast<double>(v.size());
  for (double x : v) moments.mean += x;
  moments.mean /= n;
  for (double x : v) moments.variance += (x - moments.mean) * (x - moments.mean);
  moments.variance /= n;
  return moments;
}

}  // namespace

double CvSquared(std::span<const double> v) {
  const auto [mean, variance] = MomentsOf(v);
  return mean == 0 ? 0 : variance / (mean * mean);
}

double CvSquared(std::span<const double> v, double w, std::vector<double>* gradient) {
  gradient->assign(v.size(), 0);
  const auto [mean, variance] = MomentsOf(v);
  if (mean == 0) return 0;
  const double scale = 2 / (static_cast<double>(v.size()) * mean * mean);
  for (size_t i = 0; i < v.size(); ++i) {
    (*gradient)[i] = w * scale * ((v[i] - mean) - variance / mean);
  }
  return variance / (mean * mean);
}

}  // namespace moe
