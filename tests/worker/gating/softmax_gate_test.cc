#include "worker/gating/softmax_gate.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/values.h"
#include "worker/gating/cv_squared.h"

namespace moe {
namespace {

using testing::CheckGradient;
using ::testing::Each;
using testing::MakeTensor;
using testing::RandomValues;
using testing::TestBackend;
using testing::TestParameter;
using testing::Values;

constexpr int64_t kRows = 8;
constexpr int64_t kWidth = 4;
constexpr int64_t kExperts = 11;

class SoftmaxGateTest : public ::testing::Test {
 protected:
  const TestParameter wg_{1, kWidth, kExperts};
  const Tensor x_ = MakeTensor(kRows, kWidth, RandomValues(3, kRows* kWidth, 1.5));
  SoftmaxGate gate_{TestBackend(), wg_.view(), {.rows = kRows, .waves = 2}};
};

TEST_F(SoftmaxGateTest, EveryExpertForEveryToken) {
  gate_.Forward({}, 1, x_.view(), {});
  const Choices& choices = gate_.choices(1);
  const std::vector<float> x = Values(x_), w = Values(wg_.value);
  std::vector<double> importance(kExperts);
  ASSERT_EQ(choices.gate.size(), static_cast<size_t>(kRows * kExperts));
  for (int64_t t = 0; t < kRows; ++t) {
    ASSERT_EQ(choices.offset[t], t * kExperts);
    std::vector<double> g(kExperts);
    double sum = 0;
    for (int64_t i = 0; i < kExperts; ++i) {
      double logit = 0;
      for (int64_t c = 0; c < kWidth; ++c) {
        logit += double{x[t * kWidth + c]} * w[c * kExperts + i];
      }
      sum += g[i] = std::exp(logit);
    }
    for (int64_t i = 0; i < kExperts; ++i) {
      EXPECT_EQ(choices.expert[t * kExperts + i], i);
      EXPECT_NEAR(choices.gate[t * kExperts + i], g[i] / sum, 1e-6);
      importance[i] += g[i] / sum;
    }
  }
  for (int64_t i = 0; i < kExperts; ++i) {
    EXPECT_NEAR(gate_.sums().importance[i], importance[i], 1e-5);
  }
  EXPECT_THAT(gate_.sums().load, Each(double{kRows}));
}

TEST_F(SoftmaxGateTest, Gradients) {
  const std::vector<float> r = RandomValues(5, kRows * kExperts);
  constexpr double kImportance = 0.5;
  const auto loss = [&] {
    gate_.Forward({}, 0, x_.view(), {});
    const Choices& choices = gate_.choices(0);
    std::vector<double> unused;
    return testing::Dot(choices.gate, r) +
           kImportance * CvSquared(gate_.sums().importance, 1, &unused);
  };
  loss();
  std::vector<double> dimportance;
  CvSquared(gate_.sums().importance, kImportance, &dimportance);
  Tensor dx(TestBackend(), kRows, kWidth);
  dx.Zero();
  gate_.Backward({}, 0, x_.view(), r, dimportance, std::vector<double>(kExperts, 3),
                 dx.view());
  CheckGradient("x", x_, Values(dx), loss);
  CheckGradient("wg", wg_.value, Values(wg_.gradient), loss);
}

TEST_F(SoftmaxGateTest, ARepeatedForwardBringsBackWhatBackwardNeeds) {
  constexpr int32_t kHalf = kRows / 2;
  const std::vector<double> dimportance(kExperts, 0.5), dload(kExperts);
  std::vector<std::vector<float>> dx;
  for (const bool repeats : {false, true}) {
    SoftmaxGate gate(TestBackend(), wg_.view(),
                     {.rows = kHalf, .waves = 1, .calls = 2, .repeats = repeats});
    for (int32_t call : {0, 1}) {
      gate.Forward({}, {0, call}, x_.Rows(call * kHalf, kHalf), {});
    }
    const Choices first = gate.choices({0, 0});
    const int32_t* const expert = gate.choices({0, 0}).expert.data();
    for (int32_t call : {1, 0}) {
      const Matrix x = x_.Rows(call * kHalf, kHalf);
      if (repeats) gate.Forward({}, {0, call}, x, {});
      Tensor gradient(TestBackend(), kHalf, kWidth);
      gradient.Zero();
      gate.Backward({}, {0, call}, x, RandomValues(call, kHalf * kExperts), dimportance,
                    dload, gradient.view());
      dx.push_back(Values(gradient));
    }
    // Who has seen the choices need not look again.
    EXPECT_EQ(gate.choices({0, 0}).expert.data(), expert);
    EXPECT_EQ(gate.choices({0, 0}).gate, first.gate);
  }
  EXPECT_EQ(dx[0], dx[2]);
  EXPECT_EQ(dx[1], dx[3]);
  EXPECT_NE(dx[0], dx[1]);
}

TEST_F(SoftmaxGateTest, EvaluationSkipsPadding) {
  gate_.Forward({}, 0, x_.view(), {});
  const Choices all = gate_.choices(0);
  std::vector<int32_t> target(kRows, 1);
  target[0] = target[5] = -1;
  gate_.Forward({.mode = PassMode::kEvaluate}, 1, x_.view(), target);
  const Choices& choices = gate_.choices(1);
  std::vector<float> expected;
  for (int64_t t = 0; t < kRows; ++t) {
    const bool padding = target[t] < 0;
    EXPECT_EQ(choices.offset[t + 1] - choices.offset[t], padding ? 0 : kExperts);
    if (padding) continue;
    expected.insert(expected.end(), all.gate.begin() + t * kExperts,
                    all.gate.begin() + (t + 1) * kExperts);
  }
  EXPECT_EQ(choices.gate, expected);
  EXPECT_THAT(gate_.sums().load, Each(double{kRows - 2}));
}

}  // namespace
}  // namespace moe
