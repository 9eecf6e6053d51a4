#include "server/dense_shard.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/server/made_step.h"

namespace moe {
namespace {

using testing::kReplicas;
using testing::MakeGradient;

class DenseShardTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string error;
    backend_ = MakeCpuBackend(2, &error);
    ASSERT_NE(backend_, nullptr) << error;
  }

  std::unique_ptr<DenseShard> Make(const v1::Job& job) {
    plan_ = MakeModelPlan(job);
    auto shard = std::make_unique<DenseShard>(*backend_, plan_, plan_.shards[0], job);
    shard->Initialize();
    return shard;
  }
  std::vector<float> Gradient(const DenseShard& shard, uint32_t replica) const {
    return MakeGradient(0, "dense/0", shard.size(), replica);
  }
  static std::vector<float> Sum(std::vector<float> a, const std::vector<float>& b) {
    for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
    return a;
  }

  std::unique_ptr<Backend> backend_;
  ModelPlan plan_;
};

TEST_F(DenseShardTest, SgdTakesTheSumAlongTheTree) {
  const std::unique_ptr<DenseShard> shard = Make(testing::MadeJob("sgd {}"));
  const std::vector<float> before = testing::Floats(shard->Content());
  for (uint32_t r : {2u, 0u, 1u}) {
    EXPECT_FALSE(shard->complete());
    ASSERT_TRUE(shard->AddGradient({0, r}, Gradient(*shard, r)).ok());
  }
  ASSERT_TRUE(shard->complete());
  std::vector<v1::TensorSquareSum> sums;
  shard->AppendSquareSums(&sums);
  shard->Apply(0.5, 0.25);

  const std::vector<float> sum =
      Sum(Sum(Gradient(*shard, 0), Gradient(*shard, 1)), Gradient(*shard, 2));
  const std::vector<float> after = testing::Floats(shard->Content());
  double squares = 0;
  for (size_t i = 0; i < sum.size(); ++i) {
    EXPECT_NEAR(after[i], before[i] - 0.5f * 0.25f * sum[i], 1e-7);
    squares += double{sum[i]} * sum[i];
  }
  double returned = 0;
  for (const v1::TensorSquareSum& of_tensor : sums) returned += of_tensor.sum();
  EXPECT_EQ(sums.size(), plan_.shards[0].tensors.size());
  EXPECT_NEAR(returned, squares, 1e-6 * squares);
}

// It ignores rate, scale and moments, and is no part of the norm.
TEST_F(DenseShardTest, ATensorMayHaveARateOfItsOwn) {
  v1::Job job = testing::MadeJob();
  job.mutable_training()->set_dense_shards(1);
  job.mutable_model()->mutable_layers(1)->mutable_moe()->set_gating(
      v1::GATING_STRICTLY_BALANCED);
  ASSERT_TRUE(job.optimizer().has_adam());
  const std::unique_ptr<DenseShard> shard = Make(job);
  const std::vector<float> before = testing::Floats(shard->Content());
  for (uint32_t r : {0u, 1u, 2u}) {
    ASSERT_TRUE(shard->AddGradient({0, r}, Gradient(*shard, r)).ok());
  }
  std::vector<v1::TensorSquareSum> sums;
  shard->AppendSquareSums(&sums);
  shard->Apply(0.5, 0.25);
  const std::vector<float> after = testing::Floats(shard->Content());
  const std::vector<float> sum =
      Sum(Sum(Gradient(*shard, 0), Gradient(*shard, 1)), Gradient(*shard, 2));
  int64_t begin = 0;
  int found = 0;
  for (size_t i = 0; i < plan_.shards[0].tensors.size(); ++i) {
    const TensorSpec& tensor = plan_.tensors[plan_.shards[0].tensors[i]];
    const bool own = tensor.name.ends_with(".threshold");
    found += own;
    EXPECT_EQ(sums[i].sum() == 0, own) << tensor.name;
    for (int64_t j = begin; own && j < begin + tensor.size(); ++j) {
      EXPECT_NEAR(after[j], before[j] - 0.05f * sum[j], 1e-6);
    }
    begin += tensor.size();
  }
  EXPECT_EQ(found, 1);
}

TEST_F(DenseShardTest, OwnershipAndOrderChangeNoBit) {
  std::vector<std::string> contents;
  for (int variant = 0; variant < 2; ++variant) {
    const std::unique_ptr<DenseShard> shard = Make(testing::MadeJob());
    for (int step = 0; step < 2; ++step) {
      if (variant == 0) {
        for (uint32_t r = 0; r < kReplicas; ++r) {
          ASSERT_TRUE(shard->AddGradient({0, r}, Gradient(*shard, r)).ok());
        }
      } else {
        ASSERT_TRUE(shard->AddGradient({1, 1}, Gradient(*shard, 2)).ok());
        ASSERT_TRUE(
            shard->AddGradient({1, 0}, Sum(Gradient(*shard, 0), Gradient(*shard, 1)))
                .ok());
      }
      shard->Apply(0.1, 1);
    }
    contents.push_back(shard->Content());
  }
  EXPECT_EQ(contents[0], contents[1]);
}

TEST_F(DenseShardTest, RefusesWhatOverlaps) {
  const std::unique_ptr<DenseShard> shard = Make(testing::MadeJob());
  ASSERT_TRUE(shard->AddGradient({0, 0}, Gradient(*shard, 0)).ok());
  EXPECT_EQ(shard->AddGradient({1, 0}, Gradient(*shard, 1)).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace moe
