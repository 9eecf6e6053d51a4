#include "common/kernels/cpu/vector_math.h"

#include <gtest/gtest.h>

#include <cmath>

namespace moe::cpu {
namespace {

float Apply(Vec (*f)(Vec), float x) { return _mm256_cvtss_f32(f(Splat(x))); }

// The largest error over [low, high], absolute or relative.
double LargestError(Vec (*f)(Vec), double (*exact)(double), double low, double high,
                    bool relative) {
  double worst = 0;
  for (int i = 0; i <= 200000; ++i) {
    const float x = static_cast<float>(low + (high - low) * i / 200000);
    const double want = exact(x);
    const double error = std::abs(Apply(f, x) - want);
    worst = std::max(worst, relative ? error / std::abs(want) : error);
  }
  return worst;
}

double ExactSigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double ExactTanh(double x) { return x == 0 ? 1e-300 : std::tanh(x); }
double ExactExp(double x) { return std::exp(x); }
double ExactSoftplus(double x) { return std::log1p(std::exp(x)); }
double ExactPdf(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * M_PI); }
double ExactCdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

TEST(VectorMath, Accuracy) {
  EXPECT_LT(LargestError(Exp, ExactExp, -87, 88, true), 2e-7);
  EXPECT_LT(LargestError(Sigmoid, ExactSigmoid, -80, 80, true), 4e-7);
  EXPECT_LT(LargestError(Tanh, ExactTanh, 1e-6, 12, true), 3e-7);
  EXPECT_LT(LargestError(Tanh, ExactTanh, -12, -1e-6, true), 3e-7);
  EXPECT_LT(LargestError(Softplus, ExactSoftplus, -80, 80, true), 4e-7);
  EXPECT_LT(LargestError(NormalPdf, ExactPdf, -6, 6, true), 3e-6);
  EXPECT_LT(LargestError(NormalCdf, ExactCdf, -8, 8, false), 2e-7);
  EXPECT_LT(LargestError(NormalCdf, ExactCdf, -8, 0, true), 1e-5);
}

TEST(VectorMath, Extremes) {
  EXPECT_EQ(Apply(Exp, -INFINITY), 0);
  EXPECT_EQ(Apply(Exp, -100), 0);
  EXPECT_EQ(Apply(Exp, 0), 1);
  EXPECT_TRUE(std::isfinite(Apply(Exp, INFINITY)));
  EXPECT_EQ(Apply(Sigmoid, INFINITY), 1);
  EXPECT_NEAR(Apply(Sigmoid, -INFINITY), 0, 1e-37);
  EXPECT_EQ(Apply(Tanh, INFINITY), 1);
  EXPECT_EQ(Apply(Tanh, -INFINITY), -1);
  EXPECT_EQ(Apply(Tanh, 0), 0);
  EXPECT_EQ(Apply(Softplus, 1000), 1000);
  EXPECT_EQ(Apply(Softplus, -1000), 0);
  EXPECT_EQ(Apply(NormalCdf, INFINITY), 1);
  EXPECT_EQ(Apply(NormalCdf, -INFINITY), 0);
  EXPECT_EQ(Apply(NormalCdf, 1e21f), 1);
  EXPECT_EQ(Apply(NormalPdf, 1e30f), 0);
  for (Vec (*f)(Vec) : {Exp, Sigmoid, Tanh, NormalCdf})
    EXPECT_TRUE(std::isnan(Apply(f, NAN)));
}

}  // namespace
}  // namespace moe::cpu
