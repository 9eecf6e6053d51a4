#include <algorithm>

#include "tests/kernels/kernel_test.h"

namespace moe {
namespace {

using SoftmaxTest = KernelTest;

TEST_P(SoftmaxTest, LossAndGradient) {
  for (int64_t cols : {1, 7, 33, 1024, 5001}) {
    for (int64_t gap : {0, 3}) {
      for (float scale : {0.0f, 0.25f}) {
        Random random;
        const int64_t rows = 9;
        HostMatrix logits = random.Normal(rows, cols, 5);
        // Large offsets cancel.
        for (int64_t c = 0; c < cols; ++c) {
          logits(1, c) += 500;
          logits(2, c) -= 500;
        }
        std::vector<int32_t> target = random.Below(static_cast<int32_t>(cols), rows);
        target[4] = -1;
        const DeviceMatrix d(backend(), logits, gap);
        const double loss = backend().SoftmaxCrossEntropy(d.view(), target, scale);
        const HostMatrix got = d.Get();
        double expected = 0;
        for (int64_t r = 0; r < rows; ++r) {
          const double max = *std::max_element(&logits(r, 0), &logits(r, 0) + cols);
          double sum = 0;
          for (int64_t c = 0; c < cols; ++c) sum += std::exp(logits(r, c) - max);
          if (target[r] >= 0) expected += std::log(sum) + max - logits(r, target[r]);
          for (int64_t c = 0; c < cols; ++c) {
            const double p = std::exp(logits(r, c) - max) / sum;
            const double gradient = target[r] < 0 ? 0 : scale * (p - (c == target[r]));
            const double want = scale == 0 ? logits(r, c) : gradient;
            ASSERT_NEAR(got(r, c), want, scale == 0 ? 0 : 2e-7) << r << ", " << c;
          }
        }
        ExpectNear(expected, loss, 1e-6);
      }
    }
  }
}

TEST_P(SoftmaxTest, LogSumExp) {
  for (int64_t cols : {1, 7, 33, 1024, 2500}) {
    for (int64_t gap : {0, 3}) {
      Random random;
      HostMatrix x = random.Normal(9, cols, 5);
      for (int64_t c = 0; c < cols; ++c) x(1, c) += 500;
      const DeviceMatrix d(backend(), x, gap);
      std::vector<float> largest(9);
      std::vector<double> sum(9);
      backend().LogSumExp(d.view(), largest.data(), sum.data());
      for (int64_t r = 0; r < x.rows; ++r) {
        const float max = *std::max_element(&x(r, 0), &x(r, 0) + cols);
        double expected = 0;
        for (int64_t c = 0; c < cols; ++c) expected += std::exp(double{x(r, c)} - max);
        EXPECT_EQ(largest[r], max);
        ExpectNear(expected, sum[r], 1e-6);
      }
    }
  }
}

TEST_P(SoftmaxTest, Logarithm) {
  for (int64_t cols : {1, 7, 33, 1024, 2500}) {
    for (int64_t gap : {0, 3}) {
      Random random;
      HostMatrix x = random.Normal(9, cols, 5);
      for (int64_t c = 0; c < cols; ++c) x(1, c) += 500;
      const DeviceMatrix d(backend(), x, gap);
      backend().LogSoftmax(d.view());
      const HostMatrix got = d.Get();
      for (int64_t r = 0; r < x.rows; ++r) {
        const double max = *std::max_element(&x(r, 0), &x(r, 0) + cols);
        double sum = 0;
        for (int64_t c = 0; c < cols; ++c) sum += std::exp(x(r, c) - max);
        for (int64_t c = 0; c < cols; ++c) {
          ASSERT_NEAR(got(r, c), x(r, c) - max - std::log(sum), r == 1 ? 1e-4 : 5e-6);
        }
      }
    }
  }
}

TEST_P(SoftmaxTest, NoRows) {
  const DeviceMatrix d(backend(), 0, 10);
  EXPECT_EQ(backend().SoftmaxCrossEntropy(d.view(), {}, 1), 0);
  backend().LogSoftmax(d.view());
}

INSTANTIATE_TEST_SUITE_P(Devices, SoftmaxTest, testing::ValuesIn(Devices()), DeviceName);

}  // namespace
}  // namespace moe
