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

// Each row as if it were a tensor of its own; the others stay as they are.
TEST_P(OptimizerTest, RowsWithCountsOfTheirOwn) {
  for (const auto kind : {OptimizerStep::Kind::kSgd, OptimizerStep::Kind::kAdam}) {
    for (int64_t cols : {1, 7, 600}) {
      Random random;
      const int64_t rows = 300;
      std::vector<int32_t> index;
      std::vector<int64_t> count;
      for (int32_t r = 2; r < rows; r += 1 + r % 3) {
        index.push_back(r);
        count.push_back(1 + r % 4);
      }
      const HostMatrix g = random.Normal(static_cast<int64_t>(index.size()), cols);
      const HostMatrix w = random.Normal(rows, cols);
      const HostMatrix m = random.Normal(rows, cols);
      HostMatrix v = random.Normal(rows, cols);
      for (float& square : v.values) square *= square;
      OptimizerStep step;
      step.kind = kind;
      step.adam.rate = 0.01f;
      step.gradient_scale = 0.5f;
      const DeviceMatrix dw(backend(), w, 3), dm(backend(), m, 3), dv(backend(), v, 3);
      backend().UpdateRows(step, index, count, DeviceMatrix(backend(), g, 3).view(),
                           dw.view(), dm.view(), dv.view());

      const DeviceMatrix want_w(backend(), w), want_m(backend(), m), want_v(backend(), v);
      const DeviceMatrix gradient(backend(), g);
      for (size_t i = 0; i < index.size(); ++i) {
        step.adam.count = count[i];
        backend().OptimizerUpdate(step, cols, gradient.view().row(i),
                                  want_w.view().row(index[i]), want_m.view().row(index[i]),
                                  want_v.view().row(index[i]));
      }
      EXPECT_EQ(dw.Get().values, want_w.Get().values);
      EXPECT_EQ(dm.Get().values, want_m.Get().values);
      EXPECT_EQ(dv.Get().values, want_v.Get().values);
      EXPECT_NE(dw.Get().values, w.values);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, OptimizerTest, testing::ValuesIn(Devices()),
                         DeviceName);

}  // namespace
}  // namespace moe
