#include "worker/gating/strictly_balanced_gate.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/values.h"
#include "worker/gating/cv_squared.h"

namespace moe {
namespace {

using testing::CheckGradient;
using ::testing::Each;
using ::testing::ElementsAre;
using testing::GradientCheck;
using testing::MakeTensor;
using testing::RandomValues;
using testing::TestBackend;
using testing::TestParameter;
using testing::Values;

constexpr int64_t kRows = 12;
constexpr int64_t kWidth = 4;
constexpr int64_t kExperts = 6;
constexpr int32_t kChosen = 2;  // k
constexpr int64_t kEach = 4;    // m

// The softmax of x W_g in double: [T][n].
std::vector<std::vector<double>> SoftmaxOf(const Tensor& x, const Tensor& wg) {
  const std::vector<float> rows = Values(x), w = Values(wg);
  std::vector<std::vector<double>> result;
  for (int64_t t = 0; t < x.rows(); ++t) {
    std::vector<double>& g = result.emplace_back(wg.cols());
    double sum = 0;
    for (int64_t i = 0; i < wg.cols(); ++i) {
      double logit = 0;
      for (int64_t c = 0; c < x.cols(); ++c) {
        logit += double{rows[t * x.cols() + c]} * w[c * wg.cols() + i];
      }
      sum += g[i] = std::exp(logit);
    }
    for (double& value : g) value /= sum;
  }
  return result;
}

// Gates [T][n] that belong to the choices, 0 where there are none.
std::vector<std::vector<double>> Spread(const Choices& choices, int64_t experts) {
  std::vector<std::vector<double>> gates;
  for (size_t t = 0; t + 1 < choices.offset.size(); ++t) {
    gates.emplace_back(experts);
    for (int32_t j = choices.offset[t]; j < choices.offset[t + 1]; ++j) {
      gates.back()[choices.expert[j]] = choices.gate[j];
    }
  }
  return gates;
}

class StrictlyBalancedGateTest : public ::testing::TestWithParam<uint64_t> {
 protected:
  StrictlyBalancedGateTest() {
    std::vector<float> log_t = RandomValues(7 + GetParam(), kExperts, 0.4f);
    for (float& value : log_t) value -= std::log(static_cast<float>(kExperts) / 1.5f);
    threshold_.value.Upload(log_t);
  }

  StrictlyBalancedGate MakeGate() const {
    return StrictlyBalancedGate(TestBackend(), /*layer_id=*/2,
                                {wg_.view(), threshold_.view()}, kChosen, kRows,
                                /*waves=*/2);
  }

  const Pass pass_ = {.seed = GetParam(), .step = 4, .replica = 1, .tokens = 50};
  const TestParameter wg_{1 + 10 * GetParam(), kWidth, kExperts};
  TestParameter threshold_{2 + 10 * GetParam(), 1, kExperts};
  const Tensor x_ =
      MakeTensor(kRows, kWidth, RandomValues(3 + 10 * GetParam(), kRows* kWidth, 1.5));
};

TEST_P(StrictlyBalancedGateTest, EachExpertTakesItsBestTokens) {
  StrictlyBalancedGate gate = MakeGate();
  gate.Forward(pass_, 0, x_.view(), {});
  const Choices& choices = gate.choices(0);
  EXPECT_THAT(gate.sums().load, Each(double{kEach}));
  const auto g = SoftmaxOf(x_, wg_.value);
  const auto gates = Spread(choices, kExperts);
  std::vector<std::vector<double>> expected(kRows, std::vector<double>(kExperts));
  for (int64_t i = 0; i < kExperts; ++i) {
    std::vector<int64_t> order(kRows);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](int64_t a, int64_t b) { return g[a][i] > g[b][i]; });
    for (int64_t j = 0; j < kEach; ++j) expected[order[j]][i] = g[order[j]][i];
  }
  std::vector<double> importance(kExperts);
  for (int64_t t = 0; t < kRows; ++t) {
    const double sum = std::accumulate(expected[t].begin(), expected[t].end(), 0.0);
    for (int64_t i = 0; i < kExperts; ++i) {
      EXPECT_NEAR(gates[t][i], sum == 0 ? 0 : expected[t][i] / sum, 1e-6)
          << t << " " << i;
      importance[i] += gates[t][i];
    }
  }
  for (int64_t i = 0; i < kExperts; ++i) {
    EXPECT_NEAR(gate.sums().importance[i], importance[i], 1e-9);
  }
}

TEST_P(StrictlyBalancedGateTest, GradientsWithTheChoiceHeldFixed) {
  StrictlyBalancedGate gate = MakeGate();
  const std::vector<float> r = RandomValues(5 + GetParam(), kRows * kExperts);
  constexpr double kImportance = 0.5;
  const auto loss = [&] {
    gate.Forward(pass_, 1, x_.view(), {});
    const Choices& choices = gate.choices(1);
    double sum = 0;
    for (int64_t t = 0; t < kRows; ++t) {
      for (int32_t j = choices.offset[t]; j < choices.offset[t + 1]; ++j) {
        sum += choices.gate[j] * r[t * kExperts + choices.expert[j]];
      }
    }
    std::vector<double> unused;
    return sum + kImportance * CvSquared(gate.sums().importance, 1, &unused);
  };
  loss();
  const Choices here = gate.choices(1);
  std::vector<float> dgate;
  for (int64_t t = 0; t < kRows; ++t) {
    for (int32_t j = here.offset[t]; j < here.offset[t + 1]; ++j) {
      dgate.push_back(r[t * kExperts + here.expert[j]]);
    }
  }
  std::vector<double> dimportance;
  CvSquared(gate.sums().importance, kImportance, &dimportance);
  const std::vector<double> dload(kExperts, 3);  // of no effect
  Tensor dx(TestBackend(), kRows, kWidth);
  dx.Zero();
  gate.Backward(pass_, 1, x_.view(), dgate, dimportance, dload, dx.view());
  const GradientCheck check = {.step = 2e-3, .tolerance = 1e-2, .same_side = [&] {
                                 return gate.choices(1).offset == here.offset &&
                                        gate.choices(1).expert == here.expert;
                               }};
  CheckGradient("x", x_, Values(dx), loss, check);
  CheckGradient("wg", wg_.value, Values(wg_.gradient), loss, check);
}

// Eq. 20 in the logarithms of X and T, by its thresholds; over m, and as 12 of the step's
// 50 tokens.
TEST_P(StrictlyBalancedGateTest, GradientOfTheThresholds) {
  StrictlyBalancedGate gate = MakeGate();
  gate.Forward(pass_, 0, x_.view(), {});
  const auto g = SoftmaxOf(x_, wg_.value);
  const auto gates = Spread(gate.choices(0), kExperts);
  const auto loss = [&](const std::vector<double>& log_t) {
    double sum = 0;
    for (int64_t t = 0; t < kRows; ++t) {
      for (int64_t i = 0; i < kExperts; ++i) {
        const double excess = std::log(g[t][i]) - log_t[i];
        const double term = ((excess > 0) - (gates[t][i] > 0)) * excess;
        EXPECT_GE(term, 0);
        sum += term;
      }
    }
    return sum;
  };
  Tensor dx(TestBackend(), kRows, kWidth);
  dx.Zero();
  const std::vector<double> none(kExperts);
  const std::vector<float> dgate(gate.choices(0).gate.size());
  gate.Backward(pass_, 0, x_.view(), dgate, none, none, dx.view());
  const std::vector<float> gradient = Values(threshold_.gradient);
  const std::vector<float> at = Values(threshold_.value);
  std::vector<double> log_t(at.begin(), at.end());
  for (int64_t i = 0; i < kExperts; ++i) {
    constexpr double kStep = 1e-6;
    log_t[i] = at[i] + kStep;
    const double above = loss(log_t);
    log_t[i] = at[i] - kStep;
    const double below = loss(log_t);
    log_t[i] = at[i];
    EXPECT_NEAR(gradient[i] * kEach * 50 / 12, (above - below) / (2 * kStep), 1e-4) << i;
  }
  // None of it reaches the rest.
  EXPECT_THAT(Values(dx), Each(0.0f));
  EXPECT_THAT(Values(wg_.gradient), Each(0.0f));
}

TEST_P(StrictlyBalancedGateTest, EvaluationGoesByThresholdsAndSkipsPadding) {
  StrictlyBalancedGate gate = MakeGate();
  std::vector<int32_t> target(kRows, 3);
  target[1] = target[8] = -1;
  gate.Forward({.mode = PassMode::kEvaluate}, 0, x_.view(), target);
  const Choices& choices = gate.choices(0);
  const auto g = SoftmaxOf(x_, wg_.value);
  const auto gates = Spread(choices, kExperts);
  const std::vector<float> log_t = Values(threshold_.value);
  std::vector<double> load(kExperts);
  for (int64_t t = 0; t < kRows; ++t) {
    std::vector<double> expected(kExperts);
    for (int64_t i = 0; i < kExperts; ++i) {
      if (target[t] >= 0 && g[t][i] > std::exp(log_t[i])) expected[i] = g[t][i];
      load[i] += expected[i] > 0;
    }
    const double sum = std::accumulate(expected.begin(), expected.end(), 0.0);
    for (int64_t i = 0; i < kExperts; ++i) {
      EXPECT_NEAR(gates[t][i], sum == 0 ? 0 : expected[i] / sum, 1e-6) << t << " " << i;
    }
  }
  EXPECT_EQ(gate.sums().load, load);
  EXPECT_GT(choices.expert.size(), 0u);
  EXPECT_LT(choices.expert.size(), static_cast<size_t>((kRows - 2) * kExperts));
}

// All tie: the random bits decide, other ones in every step, wave and replica.
TEST_P(StrictlyBalancedGateTest, TiesAreDrawn) {
  const TestParameter zero(1, kWidth, kExperts, /*bound=*/0);
  StrictlyBalancedGate gate(TestBackend(), 2, {zero.view(), threshold_.view()}, kChosen,
                            kRows, 2);
  const auto offsets = [&](const Pass& pass, int32_t wave) {
    gate.Forward(pass, wave, x_.view(), {});
    EXPECT_THAT(gate.sums().load, Each(double{kEach}));
    return gate.choices(wave).offset;
  };
  const std::vector<int32_t> first = offsets(pass_, 0);
  EXPECT_EQ(offsets(pass_, 0), first);
  EXPECT_NE(offsets(pass_, 1), first);
  Pass other = pass_;
  other.step = 5;
  EXPECT_NE(offsets(other, 0), first);
  other = pass_;
  other.replica = 2;
  EXPECT_NE(offsets(other, 0), first);
}

INSTANTIATE_TEST_SUITE_P(Seeds, StrictlyBalancedGateTest,
                         ::testing::Range<uint64_t>(0, 3));

// x is the logits: token t of 1 .. 11 wants one expert, the last one two, token 0 none.
class WantedExpertsTest : public ::testing::Test {
 protected:
  WantedExpertsTest() {
    std::vector<float> identity(kExperts * kExperts);
    for (int64_t i = 0; i < kExperts; ++i) identity[i * kExperts + i] = 1;
    wg_.value.Upload(identity);
    for (int64_t t = 1; t < kRows; ++t) x_[t * kExperts + (t - 1) % kExperts] = 3;
    x_[11 * kExperts + 5] = 3;
  }

  TestParameter wg_{1, kExperts, kExperts};
  TestParameter threshold_{2, 1, kExperts, /*bound=*/0};
  std::vector<float> x_ = std::vector<float>(kRows * kExperts);
  StrictlyBalancedGate gate_{TestBackend(), 1,     {wg_.view(), threshold_.view()},
                             /*k=*/1,       kRows, /*waves=*/1};
};

TEST_F(WantedExpertsTest, ATokenMayHaveNoneOrSeveral) {
  const Tensor x = MakeTensor(kRows, kExperts, x_);
  gate_.Forward({}, 0, x.view(), {});
  const Choices& choices = gate_.choices(0);
  EXPECT_THAT(choices.offset, ElementsAre(0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12));
  EXPECT_THAT(choices.expert, ElementsAre(0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5));
  EXPECT_THAT(gate_.sums().load, Each(2.0));
  for (int j = 0; j < 12; ++j) EXPECT_NEAR(choices.gate[j], j < 10 ? 1 : 0.5, 1e-6);

  // A token without experts has no gradient through the gate.
  Tensor dx(TestBackend(), kRows, kExperts);
  dx.Zero();
  const std::vector<double> dimportance = {1, 2, 3, 4, 5, 6}, none(kExperts);
  gate_.Backward({.tokens = 12}, 0, x.view(), RandomValues(4, 12), dimportance, none,
                 dx.view());
  const std::vector<float> gradient = Values(dx);
  for (int64_t j = 0; j < 11 * kExperts; ++j) EXPECT_NEAR(gradient[j], 0, 1e-6);
  EXPECT_NE(gradient[11 * kExperts + 4], 0);
}

TEST_F(WantedExpertsTest, OneMicroBatchMovesAThresholdSoFar) {
  threshold_.value.Upload(std::vector<float>{-100, -100, -100, 1, 1, 1});
  const Tensor x = MakeTensor(kRows, kExperts, x_);
  gate_.Forward({}, 0, x.view(), {});
  Tensor dx(TestBackend(), kRows, kExperts);
  const std::vector<double> none(kExperts);
  gate_.Backward({.tokens = 48}, 0, x.view(), std::vector<float>(12), none, none,
                 dx.view());
  // 12 instead of 2 pass, which is 5 times m too many; or none.
  EXPECT_THAT(Values(threshold_.gradient), ElementsAre(-1, -1, -1, 0.25, 0.25, 0.25));
}

// Whatever isn't a number must reach the loss, where it is reported.
TEST_F(WantedExpertsTest, NanGoesToExperts) {
  for (int64_t i = 0; i < kExperts; ++i) {
    x_[i] = std::numeric_limits<float>::quiet_NaN();
  }
  const Tensor x = MakeTensor(kRows, kExperts, x_);
  for (PassMode mode : {PassMode::kTrain, PassMode::kEvaluate}) {
    gate_.Forward({.mode = mode}, 0, x.view(), std::vector<int32_t>(kRows, 1));
    const Choices& choices = gate_.choices(0);
    ASSERT_EQ(choices.offset[1], kExperts);
    EXPECT_TRUE(std::isnan(choices.gate[0]));
  }
}

}  // namespace
}  // namespace moe
