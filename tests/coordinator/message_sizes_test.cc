#include "server/coordinator/message_sizes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/job/placement.h"
#include "tests/job/job_of.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

void AddShard(ModelPlan* plan, ShardKind kind, const std::string& id, int64_t size) {
  TensorSpec tensor;
  tensor.name = id;
  tensor.index = static_cast<int64_t>(plan->tensors.size());
  tensor.rows = size;
  tensor.cols = 1;
  ShardSpec shard;
  shard.id = id;
  shard.kind = kind;
  shard.tensors = {tensor.index};
  plan->tensors.push_back(tensor);
  plan->shards.push_back(shard);
}

TEST(ShardSizesTest, SayWhatToChange) {
  ModelPlan plan;
  AddShard(&plan, ShardKind::kExpert, "layer1/group0", 1'000'000);
  AddShard(&plan, ShardKind::kDense, "dense/0", 1000);
  AddShard(&plan, ShardKind::kDense, "dense/1", 2000);
  EXPECT_TRUE(CheckShardSizes(plan, 4 * 2000 + 1024).ok());
  EXPECT_EQ(CheckShardSizes(plan, 4 * 2000 + 1023).message(),
            "dense shard dense/1 has 8,000 bytes, and a message holds 7,999: more shards "
            "can't help, as a tensor lies in one shard and dense/1 [2000, 1] alone is "
            "larger; for a large vocabulary set model.tables");

  plan.shards[1].tensors.push_back(plan.shards[2].tensors[0]);
  plan.shards.pop_back();
  EXPECT_EQ(CheckShardSizes(plan, 4 * 2000 + 1024).message(),
            "dense shard dense/0 has 12,000 bytes, and a message holds 8,000: raise "
            "training.dense_shards, which makes 1 shards now");
}

// d = 4, 6 words of a replica in a step, 30 candidates of 100 words. Shards: dense of 320 and 256
// bytes; of each table two of 50 rows, which travel with their numbers as 5 and 6 floats.
class StepMessagesTest : public ::testing::Test {
 protected:
  // The smallest message in which the job passes; just below it `error` is set.
  int64_t Needed(const v1::Job& job, const std::vector<std::string>& servers,
                 const std::vector<std::string>& workers) {
    const ModelPlan plan = MakeModelPlan(job);
    const v1::Placement placement = MakePlacement(plan, servers);
    const auto replicas = AssignReplicas(job.training().replicas(), workers);
    int64_t low = 0;
    int64_t high = 1 << 20;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      const absl::Status status =
          CheckStepMessages(job, plan, placement, replicas, middle);
      (status.ok() ? high : low) = middle;
      if (!status.ok()) error_ = std::string(status.message());
    }
    EXPECT_EQ(CheckStepMessages(job, plan, placement, replicas, low).code(),
              absl::StatusCode::kFailedPrecondition);
    error_ =
        std::string(CheckStepMessages(job, plan, placement, replicas, low).message());
    return high;
  }

  static v1::Job Job(int replicas, int shards = 2) {
    return JobOf("d_model: 4 vocabulary: 100 tables { candidates: 30 shards: " +
                     std::to_string(shards) + " } layers { lstm { hidden: 4 } }",
                 "replicas: " + std::to_string(replicas));
  }

  std::string error_;
};

constexpr int64_t kFraming = 1024;
constexpr int64_t kPart = 128;
constexpr int64_t kDense = 576 + 2 * kPart;
// c and h of 2 lanes.
constexpr int64_t kState = 4 * 2 * (4 + 4) + kPart;

// Of a node of so many replicas, all words being different ones.
int64_t Rows(int64_t replicas) {
  return 4 * kPart + 4 * (6 * replicas * 5 + (6 * replicas + 30) * 6);
}

TEST_F(StepMessagesTest, AClose) {
  EXPECT_EQ(Needed(Job(2), {"server/a"}, {"worker/a"}),
            kFraming + kDense + Rows(2) + 2 * kState);
  EXPECT_THAT(
      error_,
      AllOf(HasSubstr("worker/a may close a step at server/a with 2,"),
            HasSubstr("1 times dense gradients of 832"), HasSubstr("a message holds "),
            HasSubstr("model.tables.candidates"), HasSubstr("model.tables.shards (2)")));
}

// Replicas 0 to 2 of 6 are two nodes, and each has dense gradients and candidates.
TEST_F(StepMessagesTest, EveryNodeOfAWorkerCounts) {
  EXPECT_EQ(Needed(Job(6), {"server/a"}, {"worker/a", "worker/b"}),
            kFraming + 2 * kDense + Rows(2) + Rows(1) + 3 * kState);
}

// More words than a table has.
TEST_F(StepMessagesTest, ARowComesOnce) {
  const int64_t all = 4 * kPart + 4 * (100 * 5 + 100 * 6);
  EXPECT_EQ(Needed(Job(32), {"server/a"}, {"worker/a"}),
            kFraming + kDense + all + 32 * kState);
}

TEST_F(StepMessagesTest, DenseGradients) {
  const v1::Job job = JobOf("d_model: 4 vocabulary: 100 layers { lstm { hidden: 4 } }");
  // embedding 400, LSTM 64 + 64 + 16, softmax 400 + 100 floats.
  EXPECT_EQ(Needed(job, {"server/a"}, {"worker/a"}),
            kFraming + 4 * 1044 + 2 * kPart + kState);
  EXPECT_THAT(error_, HasSubstr("raise training.dense_shards"));
}

TEST_F(StepMessagesTest, APull) {
  // One shard of each table, and more words than rows: all of it.
  const v1::Job job = Job(40, 1);
  const ModelPlan plan = MakeModelPlan(job);
  const auto replicas = AssignReplicas(40, {"worker/a"});
  const v1::Placement placement =
      MakePlacement(plan, std::vector<std::string>{"server/a"});
  const absl::Status status =
      CheckStepMessages(job, plan, placement, replicas, kFraming + 4 * 100 * 6 - 1);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("worker/a may pull 2,400 bytes of the 100 rows of "
                              "softmax/rows0, and a message holds 2,399"),
                    HasSubstr("raise model.tables.shards, which makes 1")));
}

}  // namespace
}  // namespace moe
