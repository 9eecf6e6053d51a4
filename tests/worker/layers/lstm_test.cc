#include "worker/layers/lstm.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "tests/worker/values.h"

namespace moe {
namespace {

using testing::CheckGradient;
using testing::MakeTensor;
using testing::RandomValues;
using testing::TestBackend;
using testing::TestParameter;
using testing::Values;

constexpr int64_t kInput = 5;
constexpr int64_t kHidden = 3;
constexpr int32_t kLanes = 2;
constexpr int32_t kUnroll = 4;
constexpr int64_t kRows = kLanes * kUnroll;

class LstmTest : public ::testing::Test {
 protected:
  Lstm MakeLstm(int32_t unroll, int32_t waves) const {
    return Lstm(TestBackend(), {wx_.view(), wh_.view(), b_.view()}, kLanes, unroll,
                waves);
  }

  const TestParameter wx_{1, kInput, 4 * kHidden};
  const TestParameter wh_{2, kHidden, 4 * kHidden};
  const TestParameter b_{3, 1, 4 * kHidden};
  const Tensor x_ = MakeTensor(kRows, kInput, RandomValues(4, kRows* kInput));
  // c, then h, of both lanes.
  const std::vector<float> state_ = RandomValues(5, 2 * kLanes * kHidden);
};

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TEST_F(LstmTest, FollowsTheEquations) {
  Lstm lstm = MakeLstm(kUnroll, /*waves=*/2);
  lstm.state(1).Upload(state_);
  lstm.Forward(1, x_.view());

  const std::vector<float> wx = Values(wx_.value), wh = Values(wh_.value),
                           b = Values(b_.value);
  const std::vector<float> x = Values(x_);
  std::vector<double> c(state_.begin(), state_.begin() + kLanes * kHidden);
  std::vector<double> h(state_.begin() + kLanes * kHidden, state_.end());
  const std::vector<float> out = Values(lstm.output(1));
  for (int64_t row = 0; row < kRows; ++row) {
    const int64_t lane = row % kLanes;
    double gates[4 * kHidden];
    for (int64_t j = 0; j < 4 * kHidden; ++j) {
      gates[j] = b[j];
      for (int64_t i = 0; i < kInput; ++i) {
        gates[j] += x[row * kInput + i] * wx[i * 4 * kHidden + j];
      }
      for (int64_t i = 0; i < kHidden; ++i) {
        gates[j] += h[lane * kHidden + i] * wh[i * 4 * kHidden + j];
      }
    }
    for (int64_t j = 0; j < kHidden; ++j) {
      double& cell = c[lane * kHidden + j];
      cell = Sigmoid(gates[kHidden + j]) * cell +
             Sigmoid(gates[j]) * std::tanh(gates[2 * kHidden + j]);
      h[lane * kHidden + j] = Sigmoid(gates[3 * kHidden + j]) * std::tanh(cell);
      EXPECT_NEAR(out[row * kHidden + j], h[lane * kHidden + j], 1e-5);
    }
  }
  const std::vector<float> state = Values(lstm.state(1));
  for (int64_t i = 0; i < kLanes * kHidden; ++i) {
    EXPECT_NEAR(state[i], c[i], 1e-5);
    EXPECT_NEAR(state[kLanes * kHidden + i], h[i], 1e-5);
  }
}

TEST_F(LstmTest, TheStateIsCarriedFromCallToCall) {
  Lstm whole = MakeLstm(kUnroll, 1);
  whole.Forward(0, x_.view());
  Lstm halves = MakeLstm(kUnroll / 2, 1);
  std::vector<float> out;
  for (int64_t begin : {int64_t{0}, kRows / 2}) {
    halves.Forward(0, x_.Rows(begin, kRows / 2));
    for (float value : Values(halves.output(0))) out.push_back(value);
  }
  const std::vector<float> expected = Values(whole.output(0));
  for (int64_t i = 0; i < kRows * kHidden; ++i) EXPECT_NEAR(out[i], expected[i], 1e-6);
}

TEST_F(LstmTest, Gradients) {
  Lstm lstm = MakeLstm(kUnroll, 2);
  const std::vector<float> r = RandomValues(6, kRows * kHidden);
  const auto loss = [&] {
    lstm.state(0).Upload(state_);
    lstm.Forward(0, x_.view());
    return testing::Dot(Values(lstm.output(0)), r);
  };
  loss();
  Tensor dh = MakeTensor(kRows, kHidden, r);
  Tensor dx(TestBackend(), kRows, kInput);
  lstm.Backward(0, x_.view(), dh.view(), /*add=*/false, dx.view());

  CheckGradient("x", x_, Values(dx), loss);
  CheckGradient("wx", wx_.value, Values(wx_.gradient), loss);
  CheckGradient("wh", wh_.value, Values(wh_.gradient), loss);
  CheckGradient("b", b_.value, Values(b_.gradient), loss);
}

TEST_F(LstmTest, GradientsAdd) {
  Lstm lstm = MakeLstm(kUnroll, 2);
  const std::vector<float> r = RandomValues(6, kRows * kHidden);
  Tensor dx(TestBackend(), kRows, kInput);
  std::vector<float> dx_once, dwh_once;
  for (int32_t wave : {0, 1}) {
    lstm.Forward(wave, x_.view());
    Tensor dh = MakeTensor(kRows, kHidden, r);
    lstm.Backward(wave, x_.view(), dh.view(), /*add=*/wave > 0, dx.view());
    if (wave == 0) {
      dx_once = Values(dx);
      dwh_once = Values(wh_.gradient);
    }
  }
  const std::vector<float> dx_twice = Values(dx), dwh_twice = Values(wh_.gradient);
  for (size_t i = 0; i < dx_once.size(); ++i)
    EXPECT_NEAR(dx_twice[i], 2 * dx_once[i], 1e-5);
  for (size_t i = 0; i < dwh_once.size(); ++i)
    EXPECT_NEAR(dwh_twice[i], 2 * dwh_once[i], 1e-5);
}

}  // namespace
}  // namespace moe
