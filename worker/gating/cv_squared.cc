#include "worker/gating/cv_squared.h"

#include <cstddef>

#include "common/base/moments.h"

namespace moe {

double CvSquared(std::span<const double> v, double w, std::vector<double>* gradient) {
  const Moments moments = MomentsOf(v);
  gradient->resize(v.size());
  for (size_t i = 0; i < v.size(); ++i) {
    (*gradient)[i] = CvSquaredGradient(moments, static_cast<int64_t>(v.size()), w, v[i]);
  }
  return CvSquared(moments);
}

}  // namespace moe
