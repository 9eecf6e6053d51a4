#pragma once

#include <span>
#include <vector>

namespace moe {

// CV^2 of v, the population variance over the squared mean (eq. 7 and 11), and w times
// its gradient in *gradient [n]; w is w_importance or w_load. Where the mean is 0: value
// 0, gradient 0.
double CvSquared(std::span<const double> v, double w, std::vector<double>* gradient);

}  // namespace moe
