#include "worker/models/step_tables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/worker/values.h"

namespace moe {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using testing::MakeTensor;
using testing::TestBackend;

TEST(StepTablesTest, DistinctWords) {
  EXPECT_THAT(DistinctWords({5, -1, 2, 5, 0, -1, 2}), ElementsAre(0, 2, 5));
  EXPECT_THAT(DistinctWords({3}), ElementsAre(3));
  EXPECT_TRUE(DistinctWords({-1, -1}).empty());
  EXPECT_TRUE(DistinctWords({}).empty());
}

TEST(StepTablesTest, PlaceOf) {
  const std::vector<int32_t> words = {1, 4, 9};
  EXPECT_EQ(PlaceOf(words, 1), 0);
  EXPECT_EQ(PlaceOf(words, 9), 2);
  EXPECT_DEATH(PlaceOf(words, 5), "5");
}

Array<float> MakeArray(const std::vector<float>& values) {
  Array<float> array(TestBackend(), static_cast<int64_t>(values.size()));
  array.Upload(values);
  return array;
}

// Candidates 7, 2, 5 in the order of their draws; targets 2 and 6. d = 2.
StepTables Tables() {
  auto candidates = std::make_shared<StepCandidates>();
  candidates->candidates = {.vocabulary = 9, .words = {7, 2, 5}, .draws = 4};
  candidates->rows.words = {7, 2, 5};
  StepTables tables;
  tables.candidates = candidates;
  tables.target.words = {2, 6};
  tables.input.words = {0, 8};
  return tables;
}

TEST(StepTablesTest, GradientsByWord) {
  const StepTables tables = Tables();
  TableGradients gradients;
  gradients.input = MakeTensor(2, 2, std::vector<float>{1, 2, 3, 4});
  gradients.candidate_w = MakeTensor(3, 2, std::vector<float>{10, 11, 20, 21, 30, 31});
  gradients.candidate_b = MakeArray({12, 22, 32});
  gradients.target_w = MakeTensor(2, 2, std::vector<float>{100, 200, 40, 41});
  gradients.target_b = MakeArray({300, 42});

  const SparseRows embedding = EmbeddingGradients(tables, gradients);
  EXPECT_THAT(embedding.row, ElementsAre(0, 8));
  EXPECT_THAT(embedding.value, ElementsAre(1, 2, 3, 4));
  // 2 is both.
  const SparseRows softmax = SoftmaxGradients(tables, gradients);
  EXPECT_THAT(softmax.row, ElementsAre(2, 5, 6, 7));
  EXPECT_THAT(softmax.value,
              ElementsAre(120, 221, 322, 30, 31, 32, 40, 41, 42, 10, 11, 12));
}

TEST(StepTablesTest, NamedRowsHaveZeroGradients) {
  const StepTables tables = Tables();
  const TableGradients zero = ZeroGradients(TestBackend(), tables, 2);
  const SparseRows embedding = EmbeddingGradients(tables, zero);
  EXPECT_THAT(embedding.row, ElementsAre(0, 8));
  EXPECT_THAT(embedding.value, Each(0));
  const SparseRows softmax = SoftmaxGradients(tables, zero);
  EXPECT_THAT(softmax.row, ElementsAre(2, 5, 6, 7));
  EXPECT_THAT(softmax.value, Each(0));
  EXPECT_EQ(softmax.value.size(), 12u);
}

}  // namespace
}  // namespace moe
