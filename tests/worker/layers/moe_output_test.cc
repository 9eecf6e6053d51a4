#include "worker/layers/moe_output.h"

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

constexpr int64_t kRows = 3;
constexpr int64_t kCols = 5;

TEST(MoeOutputTest, WithoutSigmoidRowsPassUnchanged) {
  MoeOutput output(TestBackend(), /*sigmoid=*/false, kRows, kCols, /*waves=*/2);
  const std::vector<float> y = RandomValues(1, kRows * kCols);
  output.Forward(1, y);
  EXPECT_EQ(Values(output.output(1)), y);
  const std::vector<float> r = RandomValues(2, kRows * kCols);
  EXPECT_THAT(output.Backward(1, MakeTensor(kRows, kCols, r).view()),
              ElementsAreArray(r));
}

TEST(MoeOutputTest, SigmoidGradient) {
  MoeOutput output(TestBackend(), /*sigmoid=*/true, kRows, kCols, /*waves=*/1);
  const Tensor y = MakeTensor(kRows, kCols, RandomValues(3, kRows * kCols, 2));
  const std::vector<float> r = RandomValues(4, kRows * kCols);
  const auto loss = [&] {
    output.Forward(0, Values(y));
    return testing::Dot(Values(output.output(0)), r);
  };
  loss();
  const auto dy = output.Backward(0, MakeTensor(kRows, kCols, r).view());
  const std::vector<float> gradient(dy.begin(), dy.end());
  testing::CheckGradient("y", y, gradient, loss);
}

}  // namespace
}  // namespace moe
