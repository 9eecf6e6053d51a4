#include "worker/gating/cv_squared.h"

#include <cstddef>

#include "common/base/moments.h"

namespace moe {

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
