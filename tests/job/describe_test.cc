#include "common/job/describe.h"

#include "common/job/model_plan.h"
#include "gtest/gtest.h"
#include "tests/job/job_of.h"

namespace moe {
namespace {

TEST(DescribeTest, CountsLstm) {
  const ModelCount count =
      CountModel(JobOf("d_model: 3 vocabulary: 7 layers { lstm { hidden: 3 } }"));
  ASSERT_EQ(count.layers.size(), 1u);
  EXPECT_EQ(count.layers[0].name, "layer0.lstm");
  EXPECT_EQ(count.layers[0].multiply_adds, 4 * 3 * (3 + 3));
  EXPECT_EQ(count.layers[0].parameters, 4 * 3 * (3 + 3) + 4 * 3);
  EXPECT_EQ(count.embedding_parameters, 7 * 3);
  EXPECT_EQ(count.softmax_parameters, 7 * 3 + 7);
}

TEST(DescribeTest, CountsProjectedLstm) {
  const ModelCount count = CountModel(
      JobOf("d_model: 3 vocabulary: 7 layers { lstm { hidden: 5 projection: 3 } }"));
  EXPECT_EQ(count.multiply_adds, 4 * 5 * (3 + 3) + 5 * 3);
  EXPECT_EQ(count.parameters, 4 * 5 * (3 + 3) + 5 * 3 + 4 * 5);
}

TEST(DescribeTest, CountsKExpertsAndBothGateMatrices) {
  const ModelCount count = CountModel(JobOf(R"(
      d_model: 3 vocabulary: 7
      layers { moe { experts: 8 k: 2 hidden: 5 hidden: 6 groups: 2 gating: GATING_NOISY_TOP_K } }
      )"));
  const int64_t expert = 3 * 5 + 5 * 6 + 6 * 3;
  EXPECT_EQ(count.layers[0].name, "layer0.moe");
  EXPECT_EQ(count.multiply_adds, 2 * expert + 2 * 3 * 8);
  EXPECT_EQ(count.parameters, 8 * expert + 2 * 3 * 8);
}

TEST(DescribeTest, CountsBothLevelsOfAHierarchy) {
  const ModelCount count = CountModel(JobOf(R"(
      d_model: 3 vocabulary: 7
      layers {
        moe { experts: 8 groups: 4 k_primary: 3 k: 1 hidden: 5 gating: GATING_NOISY_TOP_K }
      }
      )"));
  const int64_t expert = 3 * 5 + 5 * 3;
  const int64_t primary_gate = 2 * 3 * 4;
  const int64_t secondary_gate = 2 * 3 * 2;
  EXPECT_EQ(count.multiply_adds, primary_gate + 3 * (secondary_gate + 1 * expert));
  EXPECT_EQ(count.parameters, primary_gate + 4 * secondary_gate + 8 * expert);
}

TEST(DescribeTest, CountsAllExpertsAndOneGateMatrixOfSoftmaxGating) {
  const ModelCount count = CountModel(JobOf(R"(
      d_model: 3 vocabulary: 7
      layers { moe { experts: 8 hidden: 5 groups: 2 gating: GATING_SOFTMAX } }
      )"));
  EXPECT_EQ(count.multiply_adds, 8 * 2 * 3 * 5 + 3 * 8);
  EXPECT_EQ(count.parameters, 8 * 2 * 3 * 5 + 3 * 8);
}

TEST(DescribeTest, CountsThresholdsAsParametersOnly) {
  const ModelCount count = CountModel(JobOf(R"(
      d_model: 3 vocabulary: 7
      layers { moe { experts: 6 k: 2 hidden: 5 groups: 2 gating: GATING_STRICTLY_BALANCED } }
      )"));
  EXPECT_EQ(count.multiply_adds, 2 * 2 * 3 * 5 + 3 * 6);
  EXPECT_EQ(count.parameters, 6 * 2 * 3 * 5 + 3 * 6 + 6);
}

TEST(DescribeTest, AgreesWithThePlan) {
  const v1::Job job = JobOf(R"(
      d_model: 3 vocabulary: 7
      layers { lstm { hidden: 5 projection: 3 } }
      layers { moe { experts: 8 k: 2 hidden: 5 hidden: 6 groups: 2 gating: GATING_NOISY_TOP_K } }
      layers { lstm { hidden: 3 } }
      layers {
        moe { experts: 8 groups: 4 k_primary: 3 k: 1 hidden: 5 gating: GATING_NOISY_TOP_K }
      }
      layers { moe { experts: 4 hidden: 5 groups: 2 gating: GATING_SOFTMAX } }
      layers { moe { experts: 6 k: 1 hidden: 5 groups: 2 gating: GATING_STRICTLY_BALANCED } }
      )");
  int64_t planned = 0;
  for (const TensorSpec& tensor : MakeModelPlan(job).tensors) planned += tensor.size();
  const ModelCount count = CountModel(job);
  EXPECT_EQ(count.parameters + count.embedding_parameters + count.softmax_parameters,
            planned);
}

TEST(DescribeTest, VocabularyMayBeUnknown) {
  const ModelCount count = CountModel(JobOf("d_model: 3 layers { lstm { hidden: 3 } }"));
  EXPECT_EQ(count.embedding_parameters, 0);
  EXPECT_EQ(count.softmax_parameters, 0);
  EXPECT_GT(count.parameters, 0);
}

}  // namespace
}  // namespace moe
