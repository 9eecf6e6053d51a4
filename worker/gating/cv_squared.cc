#include "worker/gating/cv_squared.h"

#include <cstddef>

namespace moe {

double CvSquared(std::span<const double> v, double w, std::vector<double>* gradient) {
  gradient->assign(v.size(), 0);
  const double n = static_cast<double>(v.size());
  double mean = 0;
  for (double x : v) mean += x;
  mean /= n;
  if (v.empty() || mean == 0) return 0;
  double variance = 0;
  for (double x : v) variance += (x - mean) * (x - mean);
  variance /= n;
  const double scale = 2 / (n * mean * mean);
  for (size_t i = 0; i < v.size(); ++i) {
    (*gradient)[i] = w * scale * ((v[i] - mean) - variance / mean);
  }
  return variance / (mean * mean);
}

}  // namespace moe
