#include "common/base/moments.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace moe {
namespace {

using Values = std::vector<double>;

TEST(MomentsTest, OfThePopulation) {
  const auto [mean, variance] = MomentsOf(Values{1, 2, 3, 6});
  EXPECT_DOUBLE_EQ(mean, 3);
  EXPECT_DOUBLE_EQ(variance, 3.5);
  EXPECT_EQ(MomentsOf(Values{7}).mean, 7);
  EXPECT_EQ(MomentsOf(Values{7}).variance, 0);
  EXPECT_EQ(MomentsOf({}).mean, 0);
  EXPECT_EQ(MomentsOf({}).variance, 0);
}

TEST(MomentsTest, CoefficientOfVariation) {
  EXPECT_EQ(CoefficientOfVariation(Values{}), 0);
  EXPECT_EQ(CoefficientOfVariation(Values{0, 0}), 0);
  EXPECT_EQ(CoefficientOfVariation(Values{3, 3, 3}), 0);
  EXPECT_EQ(CoefficientOfVariation(Values{1, 3}), 0.5);
  EXPECT_DOUBLE_EQ(CoefficientOfVariation(Values{4, 0, 0, 0}), std::sqrt(3.0));
}

Values Numbers(int64_t count, double offset) {
  Values v;
  for (int64_t i = 0; i < count; ++i) {
    v.push_back(offset + std::sin(1.7 * static_cast<double>(i)));
  }
  return v;
}

// Also of numbers that differ little from each other, where sums of squares would cancel.
TEST(SpreadTest, PartsJoinToTheWhole) {
  for (double offset : {0.0, 3.0, 1e7}) {
    const Values v = Numbers(24, offset);
    const Spread whole = SpreadOf(v);
    for (size_t size : {1, 4, 12, 24}) {
      Spread joined;
      for (size_t i = 0; i < v.size(); i += size) {
        joined = Join(joined, SpreadOf(std::span(v).subspan(i, size)));
      }
      EXPECT_EQ(joined.count, 24);
      EXPECT_NEAR(joined.mean, whole.mean, 1e-12 * (1 + offset));
      EXPECT_NEAR(joined.m2, whole.m2, 1e-9 * whole.m2);
    }
  }
  // Of unequal sizes.
  const Values v = Numbers(10, 2);
  const Spread joined =
      Join(SpreadOf(std::span(v).first(3)), SpreadOf(std::span(v).last(7)));
  EXPECT_NEAR(joined.mean, SpreadOf(v).mean, 1e-14);
  EXPECT_NEAR(joined.m2, SpreadOf(v).m2, 1e-13);
  EXPECT_EQ(joined.moments().variance, joined.m2 / 10);
}

TEST(CvSquaredTest, GradientAgreesWithFiniteDifferences) {
  Values v = Numbers(5, 2);
  const Moments moments = MomentsOf(v);
  for (double& x : v) {
    const double at = x;
    x = at + 1e-5;
    const double above = CvSquared(MomentsOf(v));
    x = at - 1e-5;
    const double below = CvSquared(MomentsOf(v));
    x = at;
    EXPECT_NEAR(CvSquaredGradient(moments, 5, 0.3, at), 0.3 * (above - below) / 2e-5,
                1e-9);
  }
  EXPECT_EQ(CvSquaredGradient({0, 0}, 5, 0.3, 0), 0);
  EXPECT_EQ(CvSquared(Moments{0, 0}), 0);
}

}  // namespace
}  // namespace moe
