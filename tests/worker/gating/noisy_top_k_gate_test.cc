#include "worker/gating/noisy_top_k_gate.h"

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
using ::testing::ElementsAre;
using testing::GradientCheck;
using testing::MakeTensor;
using testing::RandomValues;
using testing::TestBackend;
using testing::TestParameter;
using testing::Values;

constexpr int64_t kRows = 8;
constexpr int64_t kWidth = 4;
constexpr int64_t kExperts = 6;

// What makes up the loss: <R, G>, and the two balancing losses.
struct LossWeights {
  float gates = 0;
  double importance = 0;
  double load = 0;
};

class NoisyTopKGateTest : public ::testing::TestWithParam<uint64_t> {
 protected:
  NoisyTopKGate MakeGate(int32_t k) const {
    return NoisyTopKGate(TestBackend(), /*layer_id=*/2, {wg_.view(), wnoise_.view()}, k,
                         {.rows = kRows, .waves = 2});
  }

  void CheckGradients(int32_t k, const LossWeights& weights) {
    NoisyTopKGate gate = MakeGate(k);
    const Pass pass = {.seed = 70 + GetParam(), .step = 4, .replica = 1};
    const std::vector<float> r =
        RandomValues(5 + GetParam(), kRows * kExperts, weights.gates);
    std::vector<int32_t> chosen;  // at the point itself
    const auto loss = [&] {
      gate.Forward(pass, 1, x_.view(), {});
      const Choices& choices = gate.choices(1);
      double sum = 0;
      for (size_t j = 0; j < choices.gate.size(); ++j) {
        sum += choices.gate[j] * r[j / k * kExperts + choices.expert[j]];
      }
      std::vector<double> unused;
      return sum + weights.importance * CvSquared(gate.sums().importance, 1, &unused) +
             weights.load * CvSquared(gate.sums().load, 1, &unused);
    };
    loss();
    const Choices& choices = gate.choices(1);
    chosen = choices.expert;
    std::vector<float> dgate;
    for (size_t j = 0; j < chosen.size(); ++j) {
      dgate.push_back(r[j / k * kExperts + chosen[j]]);
    }
    std::vector<double> dimportance, dload;
    CvSquared(gate.sums().importance, weights.importance, &dimportance);
    CvSquared(gate.sums().load, weights.load, &dload);
    Tensor dx(TestBackend(), kRows, kWidth);
    dx.Zero();
    gate.Backward(pass, 1, x_.view(), dgate, dimportance, dload, dx.view());

    // A loss jumps where the choice changes, and has a kink where another expert becomes
    // the k-th or the (k+1)-th: what the top k-1, k and k+1 are must stay.
    const auto ranks = [&] {
      std::vector<int32_t> experts;
      for (int32_t count : {k - 1, k, k + 1}) {
        if (count < 1 || count > kExperts) continue;
        NoisyTopKGate other = MakeGate(count);
        other.Forward(pass, 1, x_.view(), {});
        experts.insert(experts.end(), other.choices(1).expert.begin(),
                       other.choices(1).expert.end());
      }
      return experts;
    };
    const std::vector<int32_t> ranks_here = ranks();
    const GradientCheck check = {.step = 2e-3, .tolerance = 1e-2, .same_side = [&] {
                                   return ranks() == ranks_here;
                                 }};
    CheckGradient("x", x_, Values(dx), loss, check);
    CheckGradient("wg", wg_.value, Values(wg_.gradient), loss, check);
    CheckGradient("wnoise", wnoise_.value, Values(wnoise_.gradient), loss, check);
  }

  const TestParameter wg_{1 + 10 * GetParam(), kWidth, kExperts};
  const TestParameter wnoise_{2 + 10 * GetParam(), kWidth, kExperts};
  const Tensor x_ =
      MakeTensor(kRows, kWidth, RandomValues(3 + 10 * GetParam(), kRows* kWidth, 1.5));
};

TEST_P(NoisyTopKGateTest, GradientsOfTheGates) { CheckGradients(3, {.gates = 1}); }
TEST_P(NoisyTopKGateTest, GradientsOfTheImportanceLoss) {
  CheckGradients(2, {.importance = 1});
}
TEST_P(NoisyTopKGateTest, GradientsOfTheLoadLoss) { CheckGradients(2, {.load = 1}); }
TEST_P(NoisyTopKGateTest, GradientsOfTheLoadLossWithOneExpert) {
  CheckGradients(1, {.load = 1});
}
TEST_P(NoisyTopKGateTest, GradientsTogether) {
  CheckGradients(4, {.gates = 0.3, .importance = 0.5, .load = 2});
}
TEST_P(NoisyTopKGateTest, GradientsWithAllExperts) {
  CheckGradients(kExperts, {.gates = 1, .importance = 1, .load = 1});
}

TEST_P(NoisyTopKGateTest, ChoicesAreAscendingAndSumToOne) {
  NoisyTopKGate gate = MakeGate(3);
  gate.Forward({.seed = GetParam()}, 0, x_.view(), {});
  const Choices& choices = gate.choices(0);
  double importance = 0;
  for (double value : gate.sums().importance) importance += value;
  EXPECT_NEAR(importance, kRows, 1e-5);
  for (int64_t t = 0; t < kRows; ++t) {
    EXPECT_EQ(choices.offset[t + 1], 3 * (t + 1));
    EXPECT_LT(choices.expert[3 * t], choices.expert[3 * t + 1]);
    EXPECT_LT(choices.expert[3 * t + 1], choices.expert[3 * t + 2]);
    EXPECT_NEAR(choices.gate[3 * t] + choices.gate[3 * t + 1] + choices.gate[3 * t + 2],
                1, 1e-6);
  }
}

TEST_P(NoisyTopKGateTest, OneChosenExpertHasGateOneAndNoGradient) {
  NoisyTopKGate gate = MakeGate(1);
  const Pass pass = {.seed = GetParam()};
  gate.Forward(pass, 0, x_.view(), {});
  EXPECT_THAT(gate.choices(0).gate, Each(1.0f));
  Tensor dx(TestBackend(), kRows, kWidth);
  dx.Zero();
  const std::vector<double> none(kExperts, 0);
  gate.Backward(pass, 0, x_.view(), RandomValues(8, kRows), none, none, dx.view());
  EXPECT_THAT(Values(wg_.gradient), Each(0.0f));
  EXPECT_THAT(Values(dx), Each(0.0f));
}

TEST_P(NoisyTopKGateTest, EvaluationHasNoNoiseAndSkipsPadding) {
  NoisyTopKGate gate = MakeGate(2);
  const std::vector<int32_t> all_valid(kRows, 1);
  gate.Forward({.mode = PassMode::kEvaluate, .seed = 1}, 0, x_.view(), all_valid);
  gate.Forward({.mode = PassMode::kEvaluate, .seed = 2}, 1, x_.view(), all_valid);
  const Choices all = gate.choices(0);
  EXPECT_EQ(gate.choices(1).gate, all.gate);

  std::vector<int32_t> target = all_valid;
  target[0] = target[5] = -1;
  gate.Forward({.mode = PassMode::kEvaluate}, 0, x_.view(), target);
  const Choices& choices = gate.choices(0);
  std::vector<double> importance(kExperts), load(kExperts);
  Choices expected;
  expected.offset = {0};
  for (int64_t t = 0; t < kRows; ++t) {
    for (int64_t j = 2 * t; j < 2 * (t + 1) && target[t] >= 0; ++j) {
      expected.expert.push_back(all.expert[j]);
      expected.gate.push_back(all.gate[j]);
      importance[all.expert[j]] += all.gate[j];
      load[all.expert[j]] += 1;
    }
    expected.offset.push_back(static_cast<int32_t>(expected.expert.size()));
  }
  EXPECT_EQ(choices.offset, expected.offset);
  EXPECT_EQ(choices.expert, expected.expert);
  EXPECT_EQ(choices.gate, expected.gate);
  EXPECT_EQ(gate.sums().importance, importance);
  EXPECT_EQ(gate.sums().load, load);
}

// Two calls of half the rows each.
TEST_P(NoisyTopKGateTest, ATokensNoiseIsThatOfItsPlaceInTheMicroBatch) {
  constexpr int32_t kHalf = kRows / 2;
  const Pass pass = {.seed = 70 + GetParam(), .step = 4, .replica = 1};
  NoisyTopKGate whole = MakeGate(2);
  whole.Forward(pass, 1, x_.view(), {});
  const Choices& expected = whole.choices(1);
  GateSums sums{std::vector<double>(kExperts), std::vector<double>(kExperts)};
  const auto in_two = [&](const GateCalls& calls) {
    NoisyTopKGate gate(TestBackend(), /*layer_id=*/2, {wg_.view(), wnoise_.view()}, 2,
                       calls);
    std::vector<Choices> choices;
    for (int32_t call : {0, 1}) {
      gate.Forward(pass, {1, call}, x_.Rows(call * kHalf, kHalf), {});
      choices.push_back(gate.choices({1, call}));
      for (int32_t e = 0; e < kExperts; ++e) {
        sums.importance[e] += gate.sums().importance[e];
        sums.load[e] += gate.sums().load[e];
      }
    }
    return choices;
  };
  const std::vector<Choices> halves = in_two({.rows = kHalf, .waves = 2, .calls = 2});
  std::vector<int32_t> expert;
  for (const Choices& half : halves) {
    expert.insert(expert.end(), half.expert.begin(), half.expert.end());
  }
  EXPECT_EQ(expert, expected.expert);
  for (int32_t e = 0; e < kExperts; ++e) {
    EXPECT_NEAR(sums.importance[e], whole.sums().importance[e], 1e-5);
    EXPECT_NEAR(sums.load[e], whole.sums().load[e], 1e-5);
  }
  const std::vector<Choices> recurrent = in_two(
      {.rows = kHalf, .waves = 2, .calls = 2, .noise = Purpose::kRecurrentGateNoise});
  EXPECT_NE(recurrent[0].gate, halves[0].gate);
}

TEST_P(NoisyTopKGateTest, ARepeatedForwardBringsBackWhatBackwardNeeds) {
  constexpr int32_t kHalf = kRows / 2;
  const Pass pass = {.seed = 70 + GetParam(), .step = 4};
  const std::vector<double> dimportance(kExperts, 0.5), dload(kExperts, 0.25);
  std::vector<std::vector<float>> dx;
  for (const bool repeats : {false, true}) {
    NoisyTopKGate gate(TestBackend(), /*layer_id=*/2, {wg_.view(), wnoise_.view()}, 2,
                       {.rows = kHalf, .waves = 1, .calls = 2, .repeats = repeats});
    for (int32_t call : {0, 1}) {
      gate.Forward(pass, {0, call}, x_.Rows(call * kHalf, kHalf), {});
    }
    const int32_t* const expert = gate.choices({0, 0}).expert.data();
    for (int32_t call : {1, 0}) {
      const Matrix x = x_.Rows(call * kHalf, kHalf);
      if (repeats) gate.Forward(pass, {0, call}, x, {});
      Tensor gradient(TestBackend(), kHalf, kWidth);
      gradient.Zero();
      gate.Backward(pass, {0, call}, x, RandomValues(call, 2 * kHalf), dimportance, dload,
                    gradient.view());
      dx.push_back(Values(gradient));
    }
    // Who has seen the choices need not look again.
    EXPECT_EQ(gate.choices({0, 0}).expert.data(), expert);
  }
  EXPECT_EQ(dx[0], dx[2]);
  EXPECT_EQ(dx[1], dx[3]);
}

INSTANTIATE_TEST_SUITE_P(Seeds, NoisyTopKGateTest, ::testing::Range<uint64_t>(0, 3));

TEST(NoisyTopKGateTieTest, TheLowerExpertWins) {
  TestParameter zero(1, kWidth, kExperts, /*bound=*/0);
  NoisyTopKGate gate(TestBackend(), 1, {zero.view(), zero.view()}, 2, {.rows = 1});
  const Tensor x = MakeTensor(1, kWidth, RandomValues(1, kWidth));
  gate.Forward({.mode = PassMode::kEvaluate}, 0, x.view(), std::vector<int32_t>{0});
  EXPECT_THAT(gate.choices(0).expert, ElementsAre(0, 1));
}

}  // namespace
}  // namespace moe
