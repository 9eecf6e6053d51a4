#include "worker/layers/lstm.h"

#include <cmath>
#include <cstdint>
#include <string>
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

// The parameter: the projection's width, 0: none.
class LstmTest : public ::testing::TestWithParam<int64_t> {
 protected:
  bool projects() const { return GetParam() > 0; }
  Lstm MakeLstm(int32_t unroll, int32_t waves) const {
    return Lstm(
        TestBackend(),
        {wx_.view(), wh_.view(), b_.view(), projects() ? wp_.view() : Parameter()},
        kLanes, unroll, waves);
  }

  const int64_t output_ = projects() ? GetParam() : kHidden;
  const TestParameter wx_{1, kInput, 4 * kHidden};
  const TestParameter wh_{2, output_, 4 * kHidden};
  const TestParameter b_{3, 1, 4 * kHidden};
  const TestParameter wp_{7, kHidden, output_};
  const Tensor x_ = MakeTensor(kRows, kInput, RandomValues(4, kRows* kInput));
  // c, then the output, of both lanes.
  const std::vector<float> state_ = RandomValues(5, kLanes*(kHidden + output_));
};

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TEST_P(LstmTest, FollowsTheEquations) {
  Lstm lstm = MakeLstm(kUnroll, /*waves=*/2);
  lstm.state(1).Upload(state_);
  lstm.Forward(1, x_.view());

  const std::vector<float> wx = Values(wx_.value), wh = Values(wh_.value),
                           b = Values(b_.value), wp = Values(wp_.value);
  const std::vector<float> x = Values(x_);
  std::vector<double> c(state_.begin(), state_.begin() + kLanes * kHidden);
  std::vector<double> r(state_.begin() + kLanes * kHidden, state_.end());
  const std::vector<float> out = Values(lstm.output(1));
  ASSERT_EQ(out.size(), static_cast<size_t>(kRows * output_));
  for (int64_t row = 0; row < kRows; ++row) {
    const int64_t lane = row % kLanes;
    double gates[4 * kHidden];
    for (int64_t j = 0; j < 4 * kHidden; ++j) {
      gates[j] = b[j];
      for (int64_t i = 0; i < kInput; ++i) {
        gates[j] += x[row * kInput + i] * wx[i * 4 * kHidden + j];
      }
      for (int64_t i = 0; i < output_; ++i) {
        gates[j] += r[lane * output_ + i] * wh[i * 4 * kHidden + j];
      }
    }
    double h[kHidden];
    for (int64_t j = 0; j < kHidden; ++j) {
      double& cell = c[lane * kHidden + j];
      cell = Sigmoid(gates[kHidden + j]) * cell +
             Sigmoid(gates[j]) * std::tanh(gates[2 * kHidden + j]);
      h[j] = Sigmoid(gates[3 * kHidden + j]) * std::tanh(cell);
    }
    for (int64_t i = 0; i < output_; ++i) {
      double& value = r[lane * output_ + i];
      value = projects() ? 0 : h[i];
      for (int64_t j = 0; projects() && j < kHidden; ++j) {
        value += h[j] * wp[j * output_ + i];
      }
      EXPECT_NEAR(out[row * output_ + i], value, 1e-5);
    }
  }
  const std::vector<float> state = Values(lstm.state(1));
  ASSERT_EQ(state.size(), c.size() + r.size());
  for (size_t i = 0; i < c.size(); ++i) EXPECT_NEAR(state[i], c[i], 1e-5);
  for (size_t i = 0; i < r.size(); ++i) EXPECT_NEAR(state[c.size() + i], r[i], 1e-5);
}

TEST_P(LstmTest, TheStateIsCarriedFromCallToCall) {
  Lstm whole = MakeLstm(kUnroll, 1);
  whole.Forward(0, x_.view());
  Lstm halves = MakeLstm(kUnroll / 2, 1);
  std::vector<float> out;
  for (int64_t begin : {int64_t{0}, kRows / 2}) {
    halves.Forward(0, x_.Rows(begin, kRows / 2));
    for (float value : Values(halves.output(0))) out.push_back(value);
  }
  const std::vector<float> expected = Values(whole.output(0));
  ASSERT_EQ(out.size(), expected.size());
  for (size_t i = 0; i < out.size(); ++i) EXPECT_NEAR(out[i], expected[i], 1e-6);
}

TEST_P(LstmTest, Gradients) {
  Lstm lstm = MakeLstm(kUnroll, 2);
  const std::vector<float> r = RandomValues(6, kRows * output_);
  const auto loss = [&] {
    lstm.state(0).Upload(state_);
    lstm.Forward(0, x_.view());
    return testing::Dot(Values(lstm.output(0)), r);
  };
  loss();
  Tensor dr = MakeTensor(kRows, output_, r);
  Tensor dx(TestBackend(), kRows, kInput);
  lstm.Backward(0, x_.view(), dr.view(), /*add=*/false, dx.view());

  CheckGradient("x", x_, Values(dx), loss);
  CheckGradient("wx", wx_.value, Values(wx_.gradient), loss);
  CheckGradient("wh", wh_.value, Values(wh_.gradient), loss);
  CheckGradient("b", b_.value, Values(b_.gradient), loss);
  if (projects()) CheckGradient("wp", wp_.value, Values(wp_.gradient), loss);
}

TEST_P(LstmTest, GradientsAdd) {
  Lstm lstm = MakeLstm(kUnroll, 2);
  const std::vector<float> r = RandomValues(6, kRows * output_);
  Tensor dx(TestBackend(), kRows, kInput);
  std::vector<const TestParameter*> parameters = {&wx_, &wh_, &b_};
  if (projects()) parameters.push_back(&wp_);
  std::vector<std::vector<float>> once;
  for (int32_t wave : {0, 1}) {
    lstm.Forward(wave, x_.view());
    Tensor dr = MakeTensor(kRows, output_, r);
    lstm.Backward(wave, x_.view(), dr.view(), /*add=*/wave > 0, dx.view());
    if (wave > 0) continue;
    once.push_back(Values(dx));
    for (const TestParameter* parameter : parameters) {
      once.push_back(Values(parameter->gradient));
    }
  }
  std::vector<std::vector<float>> twice = {Values(dx)};
  for (const TestParameter* parameter : parameters) {
    twice.push_back(Values(parameter->gradient));
  }
  for (size_t p = 0; p < once.size(); ++p) {
    for (size_t i = 0; i < once[p].size(); ++i) {
      EXPECT_NEAR(twice[p][i], 2 * once[p][i], 1e-5);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Projection, LstmTest, ::testing::Values(0, 2, 4),
                         [](const auto& info) {
                           return "Width" + std::to_string(info.param);
                         });

}  // namespace
}  // namespace moe
