#include "worker/models/parameters.h"

#include <cstdint>
#include <string>
#include <vector>

#include "common/job/model_plan.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/small_jobs.h"
#include "tests/worker/values.h"

namespace moe {
namespace {

using ::testing::Each;
using testing::SmallJob;
using testing::TestBackend;
using testing::Values;

TEST(DenseParametersTest, AShardIsItsTensorsOneAfterTheOther) {
  const ModelPlan plan = MakeModelPlan(SmallJob("lstm_moe_lstm"));
  DenseParameters parameters(TestBackend(), plan);
  size_t shards = 0;
  for (const ShardSpec& shard : plan.shards) {
    if (shard.kind != ShardKind::kDense) continue;
    Array<float>& memory = parameters.shards().at(shards++);
    ASSERT_EQ(memory.size(), plan.SizeOf(shard));
    std::vector<float> content(memory.size());
    for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<float>(i);
    memory.Upload(content);
    float first = 0;
    for (int64_t index : shard.tensors) {
      const TensorSpec& spec = plan.tensors[index];
      const Matrix tensor = parameters.tensor(spec.name);
      EXPECT_EQ(tensor.rows, spec.rows);
      EXPECT_EQ(tensor.cols, spec.cols);
      EXPECT_EQ(Values(tensor).front(), first) << spec.name;
      first += static_cast<float>(spec.size());
      EXPECT_EQ(Values(tensor).back(), first - 1) << spec.name;
    }
  }
  EXPECT_EQ(parameters.shards().size(), shards);

  parameters.Zero();
  EXPECT_THAT(Values(parameters.tensor("softmax.b")), Each(0.0f));
  EXPECT_THAT(Values(parameters.tensor("embedding")), Each(0.0f));
}

TEST(DenseParametersDeathTest, ExpertsAreNotDense) {
  const DenseParameters parameters(TestBackend(),
                                   MakeModelPlan(SmallJob("lstm_moe_lstm")));
  EXPECT_DEATH(parameters.tensor("layer1.moe.expert0.w1"), "no dense tensor is named");
}

}  // namespace
}  // namespace moe
