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

TEST(DescribeTest, AgreesWithThePlan) {
  const v1::Job job = JobOf(R"(
      d_model: 3 vocabulary: 7
      layers { lstm { hidden: 5 projection: 3 } }
      layers { moe { experts: 8 k: 2 hidden: 5 hidden: 6 groups: 2 gating: GATING_NOISY_TOP_K } }
      layers { lstm { hidden: 3 } }
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
