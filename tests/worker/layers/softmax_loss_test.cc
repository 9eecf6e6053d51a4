#include "worker/layers/softmax_loss.h"

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

constexpr int64_t kRows = 5;
constexpr int64_t kWidth = 4;
constexpr int64_t kVocabulary = 11;

class SoftmaxLossTest : public ::testing::Test {
 protected:
  const TestParameter w_{1, kVocabulary, kWidth};
  const TestParameter b_{2, 1, kVocabulary};
  const Tensor x_ = MakeTensor(kRows, kWidth, RandomValues(3, kRows* kWidth, 2));
  const std::vector<int32_t> target_ = {3, 0, -1, 10, 3};
  SoftmaxLoss softmax_{TestBackend(), w_.view(), b_.view(), kRows};
};

TEST_F(SoftmaxLossTest, SumsOverCountedRows) {
  const std::vector<float> w = Values(w_.value), b = Values(b_.value), x = Values(x_);
  double expected = 0;
  for (int64_t t = 0; t < kRows; ++t) {
    if (target_[t] < 0) continue;
    double sum = 0, of_target = 0;
    for (int64_t v = 0; v < kVocabulary; ++v) {
      double logit = b[v];
      for (int64_t i = 0; i < kWidth; ++i) logit += x[t * kWidth + i] * w[v * kWidth + i];
      sum += std::exp(logit);
      if (v == target_[t]) of_target = logit;
    }
    expected += std::log(sum) - of_target;
  }
  EXPECT_NEAR(softmax_.Evaluate(x_.view(), target_), expected, 1e-5);
  Tensor dx(TestBackend(), kRows, kWidth);
  EXPECT_NEAR(softmax_.Train(x_.view(), target_, 0.25f, dx.view()), expected, 1e-5);
}

TEST_F(SoftmaxLossTest, Gradients) {
  constexpr float kScale = 0.25;
  Tensor dx(TestBackend(), kRows, kWidth);
  softmax_.Train(x_.view(), target_, kScale, dx.view());
  const auto loss = [&] { return kScale * softmax_.Evaluate(x_.view(), target_); };
  CheckGradient("x", x_, Values(dx), loss);
  CheckGradient("w", w_.value, Values(w_.gradient), loss);
  CheckGradient("b", b_.value, Values(b_.gradient), loss);
  // Padding has no gradient.
  const std::vector<float> gradient = Values(dx);
  for (int64_t i = 0; i < kWidth; ++i) EXPECT_EQ(gradient[2 * kWidth + i], 0);
}

}  // namespace
}  // namespace moe
