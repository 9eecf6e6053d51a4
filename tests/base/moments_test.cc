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
  EXPECT_EQ(CoefficientOfVariation({}), 0);
  EXPECT_EQ(CoefficientOfVariation(Values{0, 0}), 0);
  EXPECT_EQ(CoefficientOfVariation(Values{3, 3, 3}), 0);
  EXPECT_EQ(CoefficientOfVariation(Values{1, 3}), 0.5);
  EXPECT_DOUBLE_EQ(CoefficientOfVariation(Values{4, 0, 0, 0}), std::sqrt(3.0));
}

}  // namespace
}  // namespace moe
