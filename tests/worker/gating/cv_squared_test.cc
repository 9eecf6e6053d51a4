#include "worker/gating/cv_squared.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moe {
namespace {

using ::testing::Each;
using ::testing::SizeIs;

TEST(CvSquaredTest, KnownVectors) {
  std::vector<double> gradient;
  EXPECT_NEAR(CvSquared(std::vector<double>{1.7, 1.1, 1.2}, 1, &gradient), 0.03874999,
              1e-8);
  EXPECT_NEAR(CvSquared(std::vector<double>{0.662697, 0.320075, 1.224342, 0.792886}, 1,
                        &gradient),
              0.18635415, 1e-6);
  EXPECT_NEAR(CvSquared(std::vector<double>{1.408851, 1.324490, 1.524377, 1.816449}, 1,
                        &gradient),
              0.01501220, 1e-6);
}

TEST(CvSquaredTest, Gradient) {
  const std::vector<double> v = {0.5, 2.25, 0, 1.5, 3};
  std::vector<double> gradient, unused;
  CvSquared(v, /*w=*/0.3, &gradient);
  for (size_t i = 0; i < v.size(); ++i) {
    constexpr double kStep = 1e-5;
    std::vector<double> above = v, below = v;
    above[i] += kStep;
    below[i] -= kStep;
    const double numeric =
        (CvSquared(above, 1, &unused) - CvSquared(below, 1, &unused)) / (2 * kStep);
    EXPECT_NEAR(gradient[i], 0.3 * numeric, 1e-9);
  }
}

TEST(CvSquaredTest, BalancedOrEmptyHasNoGradient) {
  std::vector<double> gradient;
  EXPECT_EQ(CvSquared(std::vector<double>{2, 2, 2}, 1, &gradient), 0);
  EXPECT_THAT(gradient, Each(0));
  EXPECT_EQ(CvSquared(std::vector<double>(4, 0), 1, &gradient), 0);
  EXPECT_THAT(gradient, SizeIs(4));
  EXPECT_THAT(gradient, Each(0));
  EXPECT_EQ(CvSquared(std::vector<double>{7}, 1, &gradient), 0);
  EXPECT_THAT(gradient, Each(0));
  EXPECT_EQ(CvSquared({}, 1, &gradient), 0);
  EXPECT_THAT(gradient, SizeIs(0));
}

}  // namespace
}  // namespace moe
