#include "common/job/describe.h"

#include <string>

#include "common/job/job_file.h"
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

TEST(DescribeTest, CountsBothMixturesOfARecurrentMoe) {
  const ModelCount count = CountModel(JobOf(R"(
      d_model: 3 vocabulary: 7
      layers {
        recurrent_moe {
          hidden: 3
          input { experts: 8 k: 2 groups: 2 gating: GATING_NOISY_TOP_K }
          recurrent { experts: 4 k: 1 hidden: 5 groups: 2 gating: GATING_NOISY_TOP_K }
        }
      }
      )"));
  const int64_t linear = 3 * 12, deep = 3 * 5 + 5 * 12;
  const int64_t gates = 2 * 3 * 8 + 2 * 3 * 4;
  EXPECT_EQ(count.layers[0].name, "layer0.recurrent_moe");
  EXPECT_EQ(count.multiply_adds, 2 * linear + deep + gates);
  EXPECT_EQ(count.parameters, 8 * linear + 4 * deep + gates + 12);
}

TEST(DescribeTest, AgreesWithThePlan) {
  const v1::Job job = JobOf(R"(
      d_model: 3 vocabulary: 7
      layers {
        recurrent_moe {
          hidden: 3
          input { experts: 8 k: 2 groups: 2 gating: GATING_NOISY_TOP_K }
          recurrent { experts: 4 hidden: 5 groups: 2 gating: GATING_SOFTMAX }
        }
      }
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

// The table of docs/design/parameters.md.
TEST(DescribeTest, CountsTheMemoryOfEachKind) {
  struct Case {
    const char* parameters;
    const char* optimizer;
    double parameter_bytes;
    double optimizer_bytes;
  };
  const char* const factored =
      "adam {} experts { beta1: 0 second_moment: SECOND_MOMENT_FACTORED }";
  const int64_t size = 512 * 1024;
  for (const Case& c : {
           Case{"PARAMETERS_FLOAT32", "sgd {}", 4, 0},
           Case{"PARAMETERS_FLOAT32", "adam {}", 4, 8},
           Case{"PARAMETERS_FLOAT32", "adam {} experts { beta1: 0 }", 4, 4},
           Case{"PARAMETERS_FLOAT32", factored, 4, 4.0 * (512 + 1024) / size},
           Case{"PARAMETERS_FLOAT32", "adam { second_moment: SECOND_MOMENT_PER_ROW }", 4,
                4 + 4.0 * (512 + 1024) / (2 * size)},
           Case{"PARAMETERS_BFLOAT16", "adam {}", 2, 8},
           Case{"PARAMETERS_BFLOAT16", factored, 2, 4.0 * (512 + 1024) / size},
       }) {
    v1::Job job =
        JobOf(std::string("d_model: 512 layers { moe { experts: 8 k: 2 groups: 4 "
                          "hidden: 1024 gating: GATING_NOISY_TOP_K parameters: ") +
              c.parameters + " } }");
    *job.mutable_optimizer() =
        ParseJob(
            "name: \"x\" model { d_model: 512 layers { moe { experts: 8 k: 2 groups: 4 "
            "hidden: 1024 gating: GATING_NOISY_TOP_K } } } training { replicas: 1 "
            "waves: 1 lanes: 1 unroll: 1 steps: 1 } optimizer { schedule { base_rate: 1 "
            "} " +
                std::string(c.optimizer) + " }",
            "test")
            ->optimizer();
    const StoredCount experts = CountStored(job).experts;
    EXPECT_EQ(experts.parameters, 8 * 2 * size);
    const auto n = static_cast<double>(experts.parameters);
    EXPECT_DOUBLE_EQ(experts.parameter_bytes / n, c.parameter_bytes) << c.optimizer;
    EXPECT_DOUBLE_EQ(experts.optimizer_bytes / n, c.optimizer_bytes) << c.optimizer;
    EXPECT_DOUBLE_EQ(experts.bytes_per_parameter(),
                     c.parameter_bytes + c.optimizer_bytes);
  }
}

TEST(DescribeTest, MemoryOfAllElseFollowsTheJobsOptimizer) {
  v1::Job job = JobOf(R"(
      d_model: 3 vocabulary: 7
      layers { lstm { hidden: 3 } }
      layers { moe { experts: 8 groups: 4 k_primary: 3 k: 1 hidden: 5 gating: GATING_NOISY_TOP_K } }
      layers { moe { experts: 6 k: 1 hidden: 5 groups: 2 gating: GATING_STRICTLY_BALANCED } }
      )");
  v1::Adam& adam = *job.mutable_optimizer()->mutable_adam();
  adam.set_beta1(0);
  adam.set_second_moment(v1::SECOND_MOMENT_PER_ROW);
  job.mutable_optimizer()->mutable_experts()->set_beta1(0.9f);
  const ModelStored stored = CountStored(job);
  const ModelCount count = CountModel(job);
  EXPECT_EQ(stored.experts.parameters, (8 + 6) * 2 * 3 * 5);
  EXPECT_EQ(stored.dense.parameters + stored.experts.parameters,
            count.parameters + count.embedding_parameters + count.softmax_parameters);
  EXPECT_EQ(stored.dense.parameter_bytes, 4 * stored.dense.parameters);
  EXPECT_EQ(stored.experts.optimizer_bytes, 8 * stored.experts.parameters);
  // A number for each row: embedding and softmax.w; wx and wh; the first mixture's gates, 2 of
  // the layer and 2 of each group; the second's. Biases in full; thresholds have none.
  EXPECT_EQ(stored.dense.optimizer_bytes,
            4 * (7 + 7 + 3 + 3 + (2 + 4 * 2) * 3 + 3 + 4 * 3 + 7));
  job.mutable_model()->set_vocabulary(0);
  EXPECT_EQ(CountStored(job).dense.optimizer_bytes,
            4 * (3 + 3 + (2 + 4 * 2) * 3 + 3 + 4 * 3));
}

TEST(DescribeTest, VocabularyMayBeUnknown) {
  const ModelCount count = CountModel(JobOf("d_model: 3 layers { lstm { hidden: 3 } }"));
  EXPECT_EQ(count.embedding_parameters, 0);
  EXPECT_EQ(count.softmax_parameters, 0);
  EXPECT_GT(count.parameters, 0);
}

}  // namespace
}  // namespace moe
