#include "tests/worker/values.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "common/random/random.h"
#include "glog/logging.h"
#include "gtest/gtest.h"

namespace moe::testing {

Backend& TestBackend() {
  static const std::unique_ptr<Backend> backend = [] {
    std::string error;
    auto made = MakeCpuBackend(/*threads=*/2, &error);
    CHECK(made != nullptr) << error;
    return made;
  }();
  return *backend;
}

std::vector<float> RandomValues(uint64_t seed, int64_t size, float bound) {
  std::vector<float> values(size);
  FillUniform(MakeKey(seed, Purpose::kProbe, {}), 0, values);
  for (float& value : values) value = bound * (2 * value - 1);
  return values;
}

Tensor MakeTensor(int64_t rows, int64_t cols, std::span<const float> values) {
  Tensor tensor(TestBackend(), rows, cols);
  CHECK_EQ(tensor.size(), static_cast<int64_t>(values.size()));
  tensor.Upload(values);
  return tensor;
}

std::vector<float> Values(ConstMatrix contiguous) {
  CHECK(contiguous.contiguous());
  std::vector<float> values(contiguous.size());
  TestBackend().Download(contiguous.data, values.data(), values.size() * sizeof(float));
  return values;
}

std::vector<float> Values(const Tensor& tensor) { return Values(tensor.view()); }

double Dot(std::span<const float> a, std::span<const float> b) {
  CHECK_EQ(a.size(), b.size());
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

TestParameter::TestParameter(uint64_t seed, int64_t rows, int64_t cols, float bound)
    : value(MakeTensor(rows, cols, RandomValues(seed, rows * cols, bound))),
      gradient(TestBackend(), rows, cols) {
  gradient.Zero();
}

void CheckGradient(const std::string& name, const Tensor& values,
                   std::span<const float> gradient, const std::function<double()>& loss,
                   const GradientCheck& check) {
  const std::vector<float> original = Values(values);
  ASSERT_EQ(original.size(), gradient.size()) << name;
  double largest = 0;
  for (float g : gradient) largest = std::max(largest, std::abs(double{g}));
  ASSERT_GT(largest, 1e-4) << name << ": no gradient at all";

  // Views are mutable whatever the owner's constness.
  const auto upload = [&](std::span<const float> to) {
    TestBackend().Upload(to.data(), values.data(), to.size_bytes());
  };
  size_t skipped = 0;
  for (size_t i = 0; i < original.size(); ++i) {
    std::vector<float> moved = original;
    bool same_side = true;
    const auto loss_at = [&](double offset) {
      moved[i] = static_cast<float>(original[i] + offset);
      upload(moved);
      const double result = loss();
      if (check.same_side != nullptr && !check.same_side()) same_side = false;
      return result;
    };
    const double above = loss_at(check.step);
    const double above_at = moved[i];
    const double below = loss_at(-check.step);
    const double numeric = (above - below) / (above_at - moved[i]);
    if (!same_side) {
      ++skipped;
      continue;
    }
    EXPECT_NEAR(gradient[i], numeric, check.tolerance * largest)
        << name << "[" << i << "]";
  }
  EXPECT_LE(skipped * 5, original.size())
      << name << ": too few elements could be checked";
  upload(original);
}

}  // namespace moe::testing
