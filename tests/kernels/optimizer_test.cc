#include "tests/kernels/kernel_test.h"

namespace moe {
namespace {

using OptimizerTest = KernelTest;

TEST_P(OptimizerTest, Sgd) {
  for (int64_t n : {0, 1, 7, 33, 1000}) {
    Random random;
    const HostMatrix g = random.Normal(1, n), w = random.Normal(1, n);
    const DeviceMatrix dg(backend(), g), dw(backend(), w);
    OptimizerStep step;
    step.adam.rate = 0.3f;
    step.gradient_scale = 2;
    backend().OptimizerUpdate(step, n, dg.data(), dw.data(), nullptr, nullptr);
    const HostMatrix got = dw.Get();
    for (int64_t i = 0; i < n; ++i)
      ASSERT_NEAR(got(0, i), w(0, i) - 0.6f * g(0, i), 1e-6);
  }
}

TEST_P(OptimizerTest, AdamOverSeveralSteps) {
  for (float beta1 : {0.0f, 0.9f}) {
    for (int64_t n : {1, 7, 33, 100000}) {
      Random random;
      const HostMatrix w = random.Normal(1, n);
      const DeviceMatrix dw(backend(), w), m(backend(), 1, n), v(backend(), 1, n);
      std::vector<double> expected = Doubles(w), mean(n), square(n);
      OptimizerStep step;
      step.kind = OptimizerStep::Kind::kAdam;
      step.adam.rate = 0.01f;
      step.adam.beta1 = beta1;
      step.gradient_scale = 0.5f;
      for (step.adam.count = 1; step.adam.count <= 4; ++step.adam.count) {
        const HostMatrix g = random.Normal(1, n);
        const DeviceMatrix dg(backend(), g);
        backend().OptimizerUpdate(step, n, dg.data(), dw.data(), m.data(), v.data());
        const double count = static_cast<double>(step.adam.count);
        const double b1 = beta1, b2 = step.adam.beta2;
        for (int64_t i = 0; i < n; ++i) {
          const double gradient = 0.5 * g(0, i);
          mean[i] = b1 * mean[i] + (1 - b1) * gradient;
          square[i] = b2 * square[i] + (1 - b2) * gradient * gradient;
          expected[i] -= 0.01 * mean[i] / (1 - std::pow(b1, count)) /
                         (std::sqrt(square[i] / (1 - std::pow(b2, count))) + 1e-8);
        }
      }
      const HostMatrix got = dw.Get();
      for (int64_t i = 0; i < n; ++i) ASSERT_NEAR(got(0, i), expected[i], 1e-5);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, OptimizerTest, testing::ValuesIn(Devices()),
                         DeviceName);

}  // namespace
}  // namespace moe
