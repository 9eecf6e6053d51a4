#include "worker/layers/dropout.h"

#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/values.h"

namespace moe {
namespace {

using ::testing::ElementsAreArray;
using testing::MakeTensor;
using testing::RandomValues;
using testing::TestBackend;
using testing::Values;

constexpr int64_t kRows = 40;
constexpr int64_t kCols = 13;

class DropoutTest : public ::testing::Test {
 protected:
  const Dropout dropout_{TestBackend(), /*layer_id=*/2, /*rate=*/0.25};
  const Pass pass_ = {.seed = 5, .step = 9, .replica = 1};
  const Tensor ones_ = MakeTensor(kRows, kCols, std::vector<float>(kRows* kCols, 1.0f));
  Tensor y_{TestBackend(), kRows, kCols};

  std::vector<float> Mask(const Dropout& dropout, const Pass& pass, int32_t wave) {
    dropout.Forward(pass, wave, ones_.view(), {}, y_.view());
    return Values(y_);
  }
};

TEST_F(DropoutTest, KeepsTheMean) {
  int dropped = 0;
  for (float value : Mask(dropout_, pass_, 0)) {
    if (value == 0) {
      ++dropped;
    } else {
      EXPECT_FLOAT_EQ(value, 1 / 0.75f);
    }
  }
  EXPECT_NEAR(dropped, 0.25 * kRows * kCols, 0.08 * kRows * kCols);
}

TEST_F(DropoutTest, TheMaskIsAFunctionOfTheLogicalIds) {
  const std::vector<float> mask = Mask(dropout_, pass_, 0);
  EXPECT_EQ(Mask(dropout_, pass_, 0), mask);
  EXPECT_NE(Mask(dropout_, pass_, 1), mask);
  Pass other = pass_;
  other.step = 10;
  EXPECT_NE(Mask(dropout_, other, 0), mask);
  other = pass_;
  other.replica = 0;
  EXPECT_NE(Mask(dropout_, other, 0), mask);
  other = pass_;
  other.seed = 6;
  EXPECT_NE(Mask(dropout_, other, 0), mask);
  EXPECT_NE(Mask(Dropout(TestBackend(), 3, 0.25), pass_, 0), mask);
}

TEST_F(DropoutTest, BackwardHasTheForwardsMask) {
  const std::vector<float> mask = Mask(dropout_, pass_, 3);
  dropout_.Backward(pass_, 3, ones_.view(), y_.view());
  EXPECT_EQ(Values(y_), mask);
}

TEST_F(DropoutTest, ResidualIsAddedUndropped) {
  const std::vector<float> mask = Mask(dropout_, pass_, 0);
  const std::vector<float> residual = RandomValues(1, kRows * kCols);
  const Tensor added = MakeTensor(kRows, kCols, residual);
  dropout_.Forward(pass_, 0, ones_.view(), added.view(), y_.view());
  const std::vector<float> out = Values(y_);
  for (size_t i = 0; i < out.size(); ++i) EXPECT_FLOAT_EQ(out[i], mask[i] + residual[i]);
}

TEST_F(DropoutTest, EvaluationKeepsAll) {
  Pass pass = pass_;
  pass.mode = PassMode::kEvaluate;
  EXPECT_THAT(Mask(dropout_, pass, 0), ElementsAreArray(Values(ones_)));
}

}  // namespace
}  // namespace moe
