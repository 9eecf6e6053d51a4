#include "worker/layers/embedding.h"

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

TEST(EmbeddingTest, EvaluationGathersRows) {
  const TestParameter table(1, 5, 3);
  const Embedding embedding(TestBackend(), /*dropout=*/0.5);
  Tensor y(TestBackend(), 3, 3);
  const std::vector<int32_t> input = {4, 0, 4};
  embedding.Forward({.mode = PassMode::kEvaluate}, 0, table.value.view(), input,
                    y.view());
  const std::vector<float> rows = Values(table.value);
  const std::vector<float> out = Values(y);
  for (int t = 0; t < 3; ++t) {
    for (int c = 0; c < 3; ++c) EXPECT_EQ(out[t * 3 + c], rows[input[t] * 3 + c]);
  }
}

TEST(EmbeddingTest, Gradient) {
  const TestParameter table(2, 6, 9);
  const Embedding embedding(TestBackend(), /*dropout=*/0.3);
  const Pass pass = {.seed = 3, .step = 7};
  // Words repeat, and some never occur.
  const std::vector<int32_t> input = {1, 5, 1, 1, 0, 3};
  const std::vector<float> r = RandomValues(4, 6 * 9);
  Tensor y(TestBackend(), 6, 9);
  const auto loss = [&] {
    embedding.Forward(pass, 1, table.value.view(), input, y.view());
    return testing::Dot(Values(y), r);
  };
  loss();
  Tensor dy = MakeTensor(6, 9, r);
  embedding.Backward(pass, 1, input, dy.view(), table.gradient.view());
  CheckGradient("table", table.value, Values(table.gradient), loss);
}

TEST(EmbeddingDeathTest, RefusesRowsBeyondTheTable) {
  const TestParameter table(1, 5, 3);
  const Embedding embedding(TestBackend(), 0);
  Tensor y(TestBackend(), 1, 3);
  const std::vector<int32_t> input = {5};
  EXPECT_DEATH(embedding.Forward({}, 0, table.value.view(), input, y.view()),
               "row 5 of 5");
}

}  // namespace
}  // namespace moe
