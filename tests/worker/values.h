// Host values for tests of layers, and a check of gradients by central differences.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "common/kernels/backend.h"
#include "worker/layers/parameter.h"

namespace moe::testing {

// One backend for all cases of a test program.
Backend& TestBackend();

// Uniform in [-bound, bound], a function of seed alone.
std::vector<float> RandomValues(uint64_t seed, int64_t size, float bound = 1);

// A tensor with these values.
Tensor MakeTensor(int64_t rows, int64_t cols, std::span<const float> values);
std::vector<float> Values(ConstMatrix contiguous);
std::vector<float> Values(const Tensor& tensor);

double Dot(std::span<const float> a, std::span<const float> b);

// A parameter with random values and a gradient that starts at zero.
struct TestParameter {
  TestParameter(uint64_t seed, int64_t rows, int64_t cols, float bound = 1);
  Parameter view() const { return {value.view(), gradient.view()}; }

  Tensor value;
  Tensor gradient;
};

struct GradientCheck {
  double step = 1e-2;
  // Of the largest element of the gradient.
  double tolerance = 1e-2;
  // Where the loss has jumps: false for a point on another side than the gradient's own;
  // such elements are skipped, at most a fifth of all.
  std::function<bool()> same_side;
};

// Every element of `gradient` against the central difference of `loss` (which reads
// `values` anew whenever it is called). Leaves `values` as they were.
void CheckGradient(const std::string& name, const Tensor& values,
                   std::span<const float> gradient, const std::function<double()>& loss,
                   const GradientCheck& check = {});

}  // namespace moe::testing
