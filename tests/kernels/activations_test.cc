#include "tests/kernels/kernel_test.h"

namespace moe {
namespace {

using ActivationsTest = KernelTest;

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TEST_P(ActivationsTest, Sigmoid) {
  for (int64_t cols : {0, 1, 7, 33, 300}) {
    for (int64_t gap : {0, 3}) {
      Random random;
      HostMatrix x = random.Normal(9, cols, 4);
      if (cols > 5) {
        x(0, 0) = 100;
        x(0, 1) = -100;
        x(0, 2) = 0;
      }
      const HostMatrix dy = random.Normal(9, cols);
      const DeviceMatrix d(backend(), x, gap), gradient(backend(), dy, gap);
      backend().SigmoidForward(d.view(), d.view());
      backend().SigmoidBackward(d.view(), gradient.view(), gradient.view());
      const HostMatrix y = d.Get(), dx = gradient.Get();
      for (size_t i = 0; i < x.values.size(); ++i) {
        const double s = Sigmoid(x.values[i]);
        ASSERT_NEAR(y.values[i], s, 2e-7);
        ASSERT_NEAR(dx.values[i], dy.values[i] * s * (1 - s), 5e-7);
      }
    }
  }
}

TEST_P(ActivationsTest, DropoutKeepsByTheElementsNumber) {
  const RandomKey key{11, 12};
  const float rate = 0.4f;
  for (int64_t cols : {1, 7, 33, 500}) {
    for (int64_t gap : {0, 3}) {
      Random random;
      const HostMatrix x = random.Normal(60, cols), residual = random.Normal(60, cols);
      const DeviceMatrix dx(backend(), x, gap), dr(backend(), residual, gap);
      const DeviceMatrix y(backend(), 60, cols, gap), added(backend(), 60, cols, gap);
      const DeviceMatrix back(backend(), x, gap);
      backend().DropoutForward(key, rate, dx.view(), ConstMatrix(), y.view());
      backend().DropoutForward(key, rate, dx.view(), dr.view(), added.view());
      backend().DropoutBackward(key, rate, back.view(), back.view());
      const HostMatrix got = y.Get(), got_added = added.Get(), got_back = back.Get();
      int64_t kept = 0;
      for (int64_t r = 0; r < 60; ++r) {
        std::vector<float> uniform(cols);
        FillUniform(key, r, uniform);
        for (int64_t c = 0; c < cols; ++c) {
          const bool keep = uniform[c] >= rate;
          kept += keep;
          const float expected = keep ? x(r, c) / (1 - rate) : 0;
          ASSERT_NEAR(got(r, c), expected, 1e-6);
          ASSERT_EQ(got_back(r, c), got(r, c));
          ASSERT_EQ(got_added(r, c), got(r, c) + residual(r, c));
        }
      }
      if (cols == 500) {
        EXPECT_NEAR(kept / (60.0 * cols), 1 - rate, 0.01);
      }
    }
  }
}

TEST_P(ActivationsTest, DropoutOfRateZeroKeepsAll) {
  Random random;
  const HostMatrix x = random.Normal(5, 33), residual = random.Normal(5, 33);
  const DeviceMatrix dx(backend(), x), dr(backend(), residual);
  backend().DropoutForward({1, 2}, 0, dx.view(), dr.view(), dx.view());
  const HostMatrix y = dx.Get();
  for (size_t i = 0; i < x.values.size(); ++i) {
    EXPECT_EQ(y.values[i], x.values[i] + residual.values[i]);
  }
}

// The sum of h and c, each times a fixed number, after one cell; arguments [gates, c_prev].
double CellLoss(const std::vector<double>& gates, const std::vector<double>& c_prev,
                const HostMatrix& dh, const HostMatrix& dc,
                std::vector<double>* state = nullptr) {
  const int64_t units = dh.cols;
  double loss = 0;
  for (int64_t b = 0; b < dh.rows; ++b) {
    for (int64_t u = 0; u < units; ++u) {
      const double* gate = &gates[b * 4 * units + u];
      const double c = Sigmoid(gate[units]) * c_prev[b * units + u] +
                       Sigmoid(gate[0]) * std::tanh(gate[2 * units]);
      const double h = Sigmoid(gate[3 * units]) * std::tanh(c);
      loss += dh(b, u) * h + dc(b, u) * c;
      if (state != nullptr) state->insert(state->end(), {c, std::tanh(c), h});
    }
  }
  return loss;
}

TEST_P(ActivationsTest, LstmCell) {
  for (int64_t units : {1, 7, 33}) {
    for (int64_t gap : {0, 3}) {
      Random random;
      const int64_t lanes = 5;
      const HostMatrix gates = random.Normal(lanes, 4 * units, 1.5f);
      const HostMatrix c_prev = random.Normal(lanes, units);
      const HostMatrix dh = random.Normal(lanes, units), dc = random.Normal(lanes, units);
      const DeviceMatrix dgates(backend(), gates, gap), dc_prev(backend(), c_prev, gap);
      const DeviceMatrix c(backend(), lanes, units, gap),
          tanh_c(backend(), lanes, units, gap);
      const DeviceMatrix h(backend(), lanes, units, gap);
      const DeviceMatrix ddh(backend(), dh, gap), ddc(backend(), dc, gap);
      backend().LstmCellForward(dgates.view(), dc_prev.view(), c.view(), tanh_c.view(),
                                h.view());
      std::vector<double> state;
      CellLoss(Doubles(gates), Doubles(c_prev), dh, dc, &state);
      const HostMatrix got_c = c.Get(), got_t = tanh_c.Get(), got_h = h.Get();
      for (size_t i = 0; i < got_c.values.size(); ++i) {
        ExpectNear(state[3 * i], got_c.values[i], 5e-7, "c");
        ExpectNear(state[3 * i + 1], got_t.values[i], 5e-7, "tanh c");
        ExpectNear(state[3 * i + 2], got_h.values[i], 5e-7, "h");
      }
      backend().LstmCellBackward(dgates.view(), dc_prev.view(), tanh_c.view(), ddh.view(),
                                 ddc.view(), dgates.view());
      ExpectGradient(
          [&](const std::vector<double>& x) {
            return CellLoss(x, Doubles(c_prev), dh, dc);
          },
          gates, dgates.Get(), 2e-6, "gates");
      ExpectGradient(
          [&](const std::vector<double>& x) {
            return CellLoss(Doubles(gates), x, dh, dc);
          },
          c_prev, ddc.Get(), 2e-6, "c_prev");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, ActivationsTest, testing::ValuesIn(Devices()),
                         DeviceName);

}  // namespace
}  // namespace moe
