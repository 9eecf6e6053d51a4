#include "common/job/model_plan.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/job/job_of.h"

namespace moe {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

constexpr char kModel[] = R"(
    d_model: 4
    vocabulary: 11
    layers { lstm { hidden: 6 projection: 4 forget_bias: 1 } }
    layers { moe { experts: 4 k: 2 hidden: 5 groups: 2 gating: GATING_NOISY_TOP_K } }
    layers { lstm { hidden: 4 } }
    )";

std::string Describe(const TensorSpec& tensor) {
  return absl::StrCat(tensor.name, " ", tensor.rows, "x", tensor.cols);
}

// Of all tensors, in their order.
std::vector<std::string> Tensors(const ModelPlan& plan) {
  std::vector<std::string> tensors;
  for (const TensorSpec& tensor : plan.tensors) {
    EXPECT_EQ(tensor.index, static_cast<int64_t>(tensors.size()));
    tensors.push_back(Describe(tensor));
  }
  return tensors;
}

const TensorSpec& Find(const ModelPlan& plan, const std::string& name) {
  const auto it =
      std::find_if(plan.tensors.begin(), plan.tensors.end(),
                   [&](const TensorSpec& tensor) { return tensor.name == name; });
  CHECK(it != plan.tensors.end()) << name;
  return *it;
}

std::vector<std::string> ShardIds(const ModelPlan& plan) {
  std::vector<std::string> ids;
  for (const ShardSpec& shard : plan.shards) ids.push_back(shard.id);
  return ids;
}

std::vector<float> InitialValues(uint64_t seed, const TensorSpec& tensor) {
  std::vector<float> values(tensor.size(), 99);
  FillInitialValues(seed, tensor, values.data());
  return values;
}

TEST(ModelPlanTest, TensorsInLogicalOrder) {
  EXPECT_THAT(Tensors(MakeModelPlan(JobOf(kModel))),
              ElementsAre("embedding 11x4",                                          //
                          "layer0.lstm.wx 4x24", "layer0.lstm.wh 4x24",              //
                          "layer0.lstm.b 1x24", "layer0.lstm.wp 6x4",                //
                          "layer1.moe.wg 4x4", "layer1.moe.wnoise 4x4",              //
                          "layer1.moe.expert0.w1 4x5", "layer1.moe.expert0.w2 5x4",  //
                          "layer1.moe.expert1.w1 4x5", "layer1.moe.expert1.w2 5x4",  //
                          "layer1.moe.expert2.w1 4x5", "layer1.moe.expert2.w2 5x4",  //
                          "layer1.moe.expert3.w1 4x5", "layer1.moe.expert3.w2 5x4",  //
                          "layer2.lstm.wx 4x16", "layer2.lstm.wh 4x16",              //
                          "layer2.lstm.b 1x16",                                      //
                          "softmax.w 11x4", "softmax.b 1x11"));
}

TEST(ModelPlanTest, DeepExpertsHaveOneMatrixMoreThanHiddenLayers) {
  const ModelPlan plan = MakeModelPlan(JobOf(R"(
      d_model: 4 vocabulary: 11
      layers { moe { experts: 1 k: 1 hidden: 5 hidden: 6 groups: 1 gating: GATING_NOISY_TOP_K } }
      )"));
  EXPECT_EQ(Describe(plan.tensors[3]), "layer0.moe.expert0.w1 4x5");
  EXPECT_EQ(Describe(plan.tensors[4]), "layer0.moe.expert0.w2 5x6");
  EXPECT_EQ(Describe(plan.tensors[5]), "layer0.moe.expert0.w3 6x4");
}

TEST(ModelPlanTest, ARecurrentMoeHasTwoMixtures) {
  const ModelPlan plan = MakeModelPlan(JobOf(R"(
      d_model: 4 vocabulary: 11
      layers {
        recurrent_moe {
          hidden: 4
          input { experts: 2 k: 1 groups: 2 gating: GATING_NOISY_TOP_K }
          recurrent { experts: 2 hidden: 5 groups: 1 gating: GATING_SOFTMAX }
          forget_bias: 1
        }
      }
      )",
                                             "replicas: 1 dense_shards: 1"));
  const std::string layer = "layer0.recurrent_moe.";
  EXPECT_THAT(Tensors(plan),
              ElementsAre("embedding 11x4",                                    //
                          layer + "input.wg 4x2", layer + "input.wnoise 4x2",  //
                          layer + "input.expert0.w1 4x16",                     //
                          layer + "input.expert1.w1 4x16",                     //
                          layer + "recurrent.wg 4x2",                          //
                          layer + "recurrent.expert0.w1 4x5",                  //
                          layer + "recurrent.expert0.w2 5x16",                 //
                          layer + "recurrent.expert1.w1 4x5",                  //
                          layer + "recurrent.expert1.w2 5x16",                 //
                          layer + "b 1x16",                                    //
                          "softmax.w 11x4", "softmax.b 1x11"));
  EXPECT_THAT(ShardIds(plan),
              ElementsAre("dense/0", "layer0/input/group0", "layer0/input/group1",
                          "layer0/recurrent/group0", "replica/0"));
  EXPECT_EQ(plan.shards[2].mixture, 0u);
  EXPECT_EQ(plan.shards[3].mixture, 1u);
  EXPECT_THAT(plan.shards[3].tensors, ElementsAre(6, 7, 8, 9));
  // Linear experts start as an LSTM's products do.
  EXPECT_FLOAT_EQ(Find(plan, layer + "input.expert0.w1").bound, std::sqrt(3.0f / 4));
  EXPECT_TRUE(Find(plan, layer + "input.expert0.w1").of_expert);
  EXPECT_THAT(InitialValues(1, Find(plan, layer + "b")),
              ElementsAre(0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0));
}

constexpr char kHierarchical[] = R"(
    d_model: 4
    vocabulary: 11
    layers {
      moe {
        experts: 6 groups: 2 k_primary: 1 k: 2 hidden: 5 gating: GATING_NOISY_TOP_K
      }
    }
    )";

TEST(ModelPlanTest, HierarchicalTensors) {
  EXPECT_THAT(Tensors(MakeModelPlan(JobOf(kHierarchical))),
              ElementsAre("embedding 11x4",                                            //
                          "layer0.moe.wg 4x2", "layer0.moe.wnoise 4x2",                //
                          "layer0.moe.group0.wg 4x3", "layer0.moe.group0.wnoise 4x3",  //
                          "layer0.moe.expert0.w1 4x5", "layer0.moe.expert0.w2 5x4",    //
                          "layer0.moe.expert1.w1 4x5", "layer0.moe.expert1.w2 5x4",    //
                          "layer0.moe.expert2.w1 4x5", "layer0.moe.expert2.w2 5x4",    //
                          "layer0.moe.group1.wg 4x3", "layer0.moe.group1.wnoise 4x3",  //
                          "layer0.moe.expert3.w1 4x5", "layer0.moe.expert3.w2 5x4",    //
                          "layer0.moe.expert4.w1 4x5", "layer0.moe.expert4.w2 5x4",    //
                          "layer0.moe.expert5.w1 4x5", "layer0.moe.expert5.w2 5x4",    //
                          "softmax.w 11x4", "softmax.b 1x11"));
}

// A secondary MoE, its gate included, is one shard.
TEST(ModelPlanTest, HierarchicalShards) {
  const ModelPlan plan =
      MakeModelPlan(JobOf(kHierarchical, "replicas: 1 dense_shards: 1"));
  EXPECT_THAT(ShardIds(plan),
              ElementsAre("dense/0", "layer0/group0", "layer0/group1", "replica/0"));
  EXPECT_THAT(plan.shards[0].tensors, ElementsAre(0, 1, 2, 19, 20));
  EXPECT_EQ(plan.shards[0].gate_tensors, 0);
  EXPECT_THAT(plan.shards[1].tensors, ElementsAre(3, 4, 5, 6, 7, 8, 9, 10));
  EXPECT_EQ(plan.shards[1].gate_tensors, 2);
  EXPECT_EQ(plan.shards[1].first_expert, 0);
  EXPECT_EQ(plan.shards[1].experts, 3);
  EXPECT_THAT(plan.shards[2].tensors, ElementsAre(11, 12, 13, 14, 15, 16, 17, 18));
  EXPECT_EQ(plan.shards[2].gate_tensors, 2);
  EXPECT_EQ(plan.shards[2].first_expert, 3);
  EXPECT_EQ(plan.shards[2].experts, 3);
  EXPECT_EQ(plan.SizeOf(plan.shards[2]), 2 * 4 * 3 + 3 * 40);
}

TEST(ModelPlanTest, SoftmaxGateHasNoNoiseMatrix) {
  const ModelPlan plan = MakeModelPlan(JobOf(R"(
      d_model: 4 vocabulary: 11
      layers { moe { experts: 2 hidden: 5 groups: 1 gating: GATING_SOFTMAX } }
      )"));
  EXPECT_THAT(Tensors(plan),
              ElementsAre("embedding 11x4", "layer0.moe.wg 4x2",                     //
                          "layer0.moe.expert0.w1 4x5", "layer0.moe.expert0.w2 5x4",  //
                          "layer0.moe.expert1.w1 4x5", "layer0.moe.expert1.w2 5x4",  //
                          "softmax.w 11x4", "softmax.b 1x11"));
  EXPECT_EQ(Find(plan, "layer0.moe.wg").bound, 0);
  EXPECT_EQ(plan.shards[2].gate_tensors, 0);
}

constexpr char kStrict[] = R"(
    d_model: 4
    vocabulary: 11
    layers { moe { experts: 2 k: 1 hidden: 5 groups: 2 gating: GATING_STRICTLY_BALANCED } }
    )";

TEST(ModelPlanTest, StrictlyBalancedGateHasThresholds) {
  const ModelPlan plan = MakeModelPlan(JobOf(kStrict));
  EXPECT_THAT(Tensors(plan),
              ElementsAre("embedding 11x4",                                          //
                          "layer0.moe.wg 4x2", "layer0.moe.threshold 1x2",           //
                          "layer0.moe.expert0.w1 4x5", "layer0.moe.expert0.w2 5x4",  //
                          "layer0.moe.expert1.w1 4x5", "layer0.moe.expert1.w2 5x4",  //
                          "softmax.w 11x4", "softmax.b 1x11"));
  EXPECT_THAT(ShardIds(plan), ElementsAre("dense/0", "dense/1", "layer0/group0",
                                          "layer0/group1", "replica/0"));
  EXPECT_EQ(plan.shards[3].gate_tensors, 0);
  EXPECT_THAT(plan.shards[3].tensors, ElementsAre(5, 6));
}

TEST(ModelPlanTest, Shards) {
  const ModelPlan plan = MakeModelPlan(JobOf(kModel, "replicas: 3"));
  EXPECT_THAT(ShardIds(plan),
              ElementsAre("dense/0", "dense/1", "layer1/group0", "layer1/group1",
                          "replica/0", "replica/1", "replica/2"));

  const ShardSpec& group = plan.shards[3];
  EXPECT_EQ(group.kind, ShardKind::kExpert);
  EXPECT_EQ(group.layer, 1);
  EXPECT_EQ(group.group, 1);
  EXPECT_EQ(group.first_expert, 2);
  EXPECT_EQ(group.experts, 2);
  EXPECT_THAT(group.tensors, ElementsAre(11, 12, 13, 14));
  EXPECT_EQ(plan.SizeOf(group), 4 * 20);

  EXPECT_EQ(plan.shards[6].kind, ShardKind::kReplica);
  EXPECT_EQ(plan.shards[6].replica, 2u);
  EXPECT_TRUE(plan.shards[6].tensors.empty());
}

TEST(ModelPlanTest, EveryTensorIsInExactlyOneShardAndAscending) {
  for (int dense_shards = 1; dense_shards < 20; ++dense_shards) {
    const ModelPlan plan = MakeModelPlan(
        JobOf(kModel, absl::StrCat("replicas: 2 dense_shards: ", dense_shards)));
    std::vector<int> shards_of(plan.tensors.size());
    int64_t last_dense = -1;
    int dense = 0;
    for (const ShardSpec& shard : plan.shards) {
      EXPECT_TRUE(std::is_sorted(shard.tensors.begin(), shard.tensors.end())) << shard.id;
      for (int64_t t : shard.tensors) {
        ++shards_of[t];
        const bool expert = plan.tensors[t].name.find(".expert") != std::string::npos;
        EXPECT_EQ(expert, shard.kind == ShardKind::kExpert) << plan.tensors[t].name;
      }
      if (shard.kind != ShardKind::kDense) continue;
      EXPECT_EQ(shard.id, absl::StrCat("dense/", dense++));
      ASSERT_FALSE(shard.tensors.empty()) << shard.id;
      EXPECT_GT(shard.tensors.front(), last_dense);
      last_dense = shard.tensors.back();
    }
    EXPECT_THAT(shards_of, Each(1));
    // 12 dense tensors, each of them whole.
    EXPECT_EQ(dense, std::min(dense_shards, 12));
  }
}

TEST(ModelPlanTest, DenseShardsAreBalanced) {
  const ModelPlan plan = MakeModelPlan(JobOf(R"(
      d_model: 32 vocabulary: 64
      layers { lstm { hidden: 32 } } layers { lstm { hidden: 32 } }
      layers { lstm { hidden: 32 } } layers { lstm { hidden: 32 } }
      )",
                                             "replicas: 1 dense_shards: 3"));
  int64_t total = 0;
  int64_t largest_tensor = 0;
  for (const TensorSpec& tensor : plan.tensors) {
    total += tensor.size();
    largest_tensor = std::max(largest_tensor, tensor.size());
  }
  for (const ShardSpec& shard : plan.shards) {
    if (shard.kind != ShardKind::kDense) continue;
    EXPECT_LE(std::abs(plan.SizeOf(shard) - total / 3), largest_tensor) << shard.id;
  }
}

// Placement and processes are no argument of the plan; what remains is that fields which
// don't shape the model leave it alone.
TEST(ModelPlanTest, DependsOnTheModelAndTheCutOnly) {
  v1::Job job = JobOf(kModel, "replicas: 2");
  const ModelPlan plan = MakeModelPlan(job);
  job.set_name("other");
  job.set_seed(99);
  job.mutable_training()->set_waves(2);
  job.mutable_training()->set_unroll(50);
  job.mutable_training()->set_dense_shards(0);
  job.mutable_optimizer()->mutable_adam();
  job.mutable_checkpointing()->set_every_steps(3);
  const ModelPlan other = MakeModelPlan(job);
  EXPECT_THAT(ShardIds(other), ElementsAreArray(ShardIds(plan)));
  for (size_t s = 0; s < plan.shards.size(); ++s) {
    EXPECT_EQ(other.shards[s].tensors, plan.shards[s].tensors);
  }
  ASSERT_EQ(other.tensors.size(), plan.tensors.size());
  for (size_t t = 0; t < plan.tensors.size(); ++t) {
    EXPECT_EQ(Describe(other.tensors[t]), Describe(plan.tensors[t]));
    EXPECT_EQ(other.tensors[t].bound, plan.tensors[t].bound);
  }

  // More groups or replicas cut shards, but the tensors, and so their initial values,
  // stay.
  job.mutable_model()->mutable_layers(1)->mutable_moe()->set_groups(4);
  job.mutable_training()->set_replicas(5);
  const ModelPlan finer = MakeModelPlan(job);
  EXPECT_EQ(finer.shards.size(), 2u + 4 + 5);
  ASSERT_EQ(finer.tensors.size(), plan.tensors.size());
  for (size_t t = 0; t < plan.tensors.size(); ++t) {
    EXPECT_EQ(Describe(finer.tensors[t]), Describe(plan.tensors[t]));
  }
}

TEST(InitialValuesTest, BoundsGiveVarianceOneOverFanIn) {
  const ModelPlan plan = MakeModelPlan(JobOf(kModel));
  EXPECT_FLOAT_EQ(Find(plan, "embedding").bound, std::sqrt(3.0f / 4));
  EXPECT_FLOAT_EQ(Find(plan, "layer0.lstm.wx").bound, std::sqrt(3.0f / 4));
  EXPECT_FLOAT_EQ(Find(plan, "layer0.lstm.wh").bound, std::sqrt(3.0f / 4));
  EXPECT_FLOAT_EQ(Find(plan, "layer0.lstm.wp").bound, std::sqrt(3.0f / 6));
  EXPECT_FLOAT_EQ(Find(plan, "layer1.moe.expert3.w1").bound, std::sqrt(3.0f / 4));
  EXPECT_FLOAT_EQ(Find(plan, "layer1.moe.expert3.w2").bound, std::sqrt(3.0f / 5));
  EXPECT_FLOAT_EQ(Find(plan, "softmax.w").bound, std::sqrt(3.0f / 4));
  for (const char* name : {"layer0.lstm.b", "layer1.moe.wg", "layer1.moe.wnoise",
                           "layer2.lstm.b", "softmax.b"}) {
    EXPECT_EQ(Find(plan, name).bound, 0) << name;
  }
}

TEST(InitialValuesTest, UniformScaleHoldsForAllButTheGates) {
  const ModelPlan plan =
      MakeModelPlan(JobOf(std::string(kModel) + "initialization { uniform_scale: 0.1 }"));
  for (const TensorSpec& tensor : plan.tensors) {
    const bool gate =
        tensor.name == "layer1.moe.wg" || tensor.name == "layer1.moe.wnoise";
    EXPECT_EQ(tensor.bound, gate ? 0 : 0.1f) << tensor.name;
  }
}

TEST(InitialValuesTest, GatesOfBothLevelsStartAtZero) {
  const ModelPlan plan = MakeModelPlan(
      JobOf(std::string(kHierarchical) + "initialization { uniform_scale: 0.1 }"));
  for (const char* name : {"layer0.moe.wg", "layer0.moe.wnoise", "layer0.moe.group0.wg",
                           "layer0.moe.group1.wnoise"}) {
    EXPECT_THAT(InitialValues(1, Find(plan, name)), Each(0.0f)) << name;
  }
}

// With equal columns some tokens would be every expert's best and most tokens none's.
TEST(InitialValuesTest, StrictGateIsSmallButNotZero) {
  for (const char* scale : {"", "initialization { uniform_scale: 0.2 }"}) {
    const ModelPlan plan = MakeModelPlan(JobOf(std::string(kStrict) + scale));
    const TensorSpec& wg = Find(plan, "layer0.moe.wg");
    EXPECT_FLOAT_EQ(wg.bound, 0.1f * Find(plan, "layer0.moe.expert0.w1").bound);
    EXPECT_THAT(InitialValues(1, wg), Each(::testing::Ne(0.0f)));
    // The logarithm of a gate's mean over the experts.
    EXPECT_THAT(InitialValues(1, Find(plan, "layer0.moe.threshold")),
                Each(std::log(0.5f)));
  }
}

TEST(InitialValuesTest, FillTheirRange) {
  const ModelPlan plan = MakeModelPlan(JobOf(R"(
      d_model: 48 vocabulary: 500 layers { lstm { hidden: 48 } })"));
  for (const char* name : {"embedding", "layer0.lstm.wx", "softmax.w"}) {
    const TensorSpec& tensor = Find(plan, name);
    const std::vector<float> values = InitialValues(1, tensor);
    double sum = 0;
    double squares = 0;
    for (float value : values) {
      ASSERT_LE(std::abs(value), tensor.bound);
      sum += value;
      squares += static_cast<double>(value) * value;
    }
    EXPECT_LT(*std::min_element(values.begin(), values.end()), -0.99f * tensor.bound);
    EXPECT_GT(*std::max_element(values.begin(), values.end()), 0.99f * tensor.bound);
    EXPECT_NEAR(sum / tensor.size(), 0, 0.03 * tensor.bound) << name;
    EXPECT_NEAR(squares / tensor.size(), 1.0 / 48, 0.03 / 48) << name;
  }
}

TEST(InitialValuesTest, GatesAndBiasesAreZeroButForTheForgetBias) {
  const ModelPlan plan = MakeModelPlan(JobOf(kModel));
  for (const char* name :
       {"layer1.moe.wg", "layer1.moe.wnoise", "layer2.lstm.b", "softmax.b"}) {
    EXPECT_THAT(InitialValues(1, Find(plan, name)), Each(0.0f)) << name;
  }
  std::vector<float> bias(24, 0.0f);
  std::fill_n(bias.begin() + 6, 6, 1.0f);  // input, forget, candidate, output; 6 units
  EXPECT_THAT(InitialValues(1, Find(plan, "layer0.lstm.b")), ElementsAreArray(bias));
}

TEST(InitialValuesTest, ForgetBiasIsAddedToUniformBiases) {
  const std::string scale = "initialization { uniform_scale: 0.25 }";
  const std::string with =
      "d_model: 4 vocabulary: 11 layers { lstm { hidden: 4 forget_bias: 2 } }";
  const std::string without = "d_model: 4 vocabulary: 11 layers { lstm { hidden: 4 } }";
  const std::vector<float> offset =
      InitialValues(5, Find(MakeModelPlan(JobOf(with + scale)), "layer0.lstm.b"));
  const std::vector<float> plain =
      InitialValues(5, Find(MakeModelPlan(JobOf(without + scale)), "layer0.lstm.b"));
  for (int c = 0; c < 16; ++c) {
    EXPECT_EQ(offset[c], plain[c] + (c >= 4 && c < 8 ? 2.0f : 0.0f));
    EXPECT_NE(plain[c], 0);
  }
}

TEST(InitialValuesTest, AreAFunctionOfSeedAndTensor) {
  const ModelPlan plan = MakeModelPlan(JobOf(kModel));
  const TensorSpec& first = Find(plan, "layer1.moe.expert0.w1");
  const TensorSpec& second = Find(plan, "layer1.moe.expert1.w1");
  EXPECT_EQ(InitialValues(1, first), InitialValues(1, first));
  EXPECT_NE(InitialValues(1, first), InitialValues(2, first));
  EXPECT_NE(InitialValues(1, first), InitialValues(1, second));
  // Rows differ.
  const std::vector<float> values = InitialValues(1, first);
  EXPECT_NE(std::vector<float>(values.begin(), values.begin() + 5),
            std::vector<float>(values.begin() + 5, values.begin() + 10));
}

}  // namespace
}  // namespace moe
