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

// Of every part of some numbers, and of no other moments.
TEST(SpreadTest, AWholeMayContainItsParts) {
  Values v = Numbers(12, 2);
  v[3] = 0;
  v[7] = 5;
  constexpr double kMost = 5;
  const Moments whole = MomentsOf(v);
  for (int64_t size : {0, 1, 5, 11, 12}) {
    for (const Spread& part :
         {SpreadOf(std::span(v).first(size)), SpreadOf(std::span(v).last(size))}) {
      EXPECT_TRUE(MayContain(whole, 12, kMost, part)) << size;
      EXPECT_FALSE(MayContain(whole, size - 1, kMost, part)) << size;
    }
  }
  const Spread all = SpreadOf(v);
  EXPECT_FALSE(MayContain({whole.mean * 1.0001, whole.variance}, 12, kMost, all));
  EXPECT_FALSE(MayContain({whole.mean, whole.variance * 1.0001}, 12, kMost, all));
  EXPECT_FALSE(MayContain({whole.mean, whole.variance * 0.9999}, 12, kMost, all));
  EXPECT_FALSE(MayContain({NAN, whole.variance}, 12, kMost, all));
  EXPECT_FALSE(MayContain({whole.mean, whole.variance}, 12, kMost, {12, NAN, NAN}));
  EXPECT_FALSE(MayContain({INFINITY, 0}, 12, kMost, {}));
  EXPECT_FALSE(MayContain({1e300, 0}, 12, kMost, {}));
  EXPECT_TRUE(MayContain({}, 12, kMost, {3, 0, 0}));
}

TEST(SpreadTest, WhatIsLeftForTheOthersIsBounded) {
  // Two of four numbers from 0 to 10: their sum is 6, their squares deviate by 2 from 3.
  const Spread part = {2, 3, 2};
  const auto may = [&](double mean, double variance) {
    return MayContain({mean, variance}, 4, 10, part);
  };
  // The others are 0 and 0; both 10.
  EXPECT_TRUE(may(1.5, (2 + 4 * 1.5 * 1.5) / 4));
  EXPECT_TRUE(may(6.5, (2 + 4 * 3.5 * 3.5) / 4));
  EXPECT_FALSE(may(1.49, 3));
  EXPECT_FALSE(may(6.51, 13));
  // Their mean is 4: both 4, or at most as far apart as 0 and 8.
  EXPECT_TRUE(may(3.5, (2 + 4 * 0.25) / 4));
  EXPECT_FALSE(may(3.5, (2 + 4 * 0.25) / 4 - 1e-6));
  EXPECT_TRUE(may(3.5, (2 + 4 * 0.25 + 32) / 4));
  EXPECT_FALSE(may(3.5, (2 + 4 * 0.25 + 49) / 4));
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
