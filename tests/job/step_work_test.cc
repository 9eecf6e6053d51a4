#include "common/job/step_work.h"

#include <gtest/gtest.h>

#include <string>

#include "common/job/host_speed.h"
#include "common/job/step_traffic.h"
#include "tests/job/job_of.h"

namespace moe {
namespace {

constexpr double kGiga = 1e9;
constexpr HostSpeed kHost = {.flops = 100 * kGiga, .memory = 10 * kGiga};

TEST(HostSpeedTest, TheSlowerOfArithmeticAndMemoryCounts) {
  // 200 GFLOP take 2 s, 10 GB one.
  Effort effort = Piece(kHost, 200 * kGiga, 10 * kGiga);
  EXPECT_EQ(effort.arithmetic, 2);
  EXPECT_EQ(effort.memory, 0);
  effort = Piece(kHost, 200 * kGiga, 30 * kGiga);
  EXPECT_EQ(effort.arithmetic, 0);
  EXPECT_EQ(effort.memory, 3);
}

TEST(HostSpeedTest, FewRowsTakeTheTimeOfReadingTheWeights) {
  // A matrix of 512 x 1024 is 2 MiB: 0.2 ms.
  const double read = 4 * 512 * 1024 / (10 * kGiga);
  for (const double rows : {1, 2, 4}) {
    EXPECT_NEAR(ExpertProductEffort(kHost, rows, 1024, 512, 4).memory, read, 1e-12);
  }
  // As bf16 half of it.
  EXPECT_NEAR(ExpertProductEffort(kHost, 1, 1024, 512, 2).memory, read / 2, 1e-12);
  // Many rows take the time of their arithmetic, and a little more for copies.
  const double products = 2.0 * 512 * 512 * 1024 / (100 * kGiga);
  const Effort many = ExpertProductEffort(kHost, 512, 1024, 512, 4);
  EXPECT_GT(many.arithmetic, products);
  EXPECT_LT(many.arithmetic, 1.1 * products);
}

struct Planned {
  explicit Planned(const std::string& model, const std::string& training)
      : job(JobWith(model, training)),
        plan(MakeModelPlan(job)),
        mixtures(MixturesOf(job)) {}
  ServerWork Server(const HostSpeed& speed = kHost) const {
    return ServerWork(job, plan, speed, 0);
  }

  const v1::Job job;
  const ModelPlan plan;
  const std::vector<Mixture> mixtures;
};

// 2 replicas, 64 lanes by 4 time steps: 512 tokens a step.
constexpr char kTraining[] = "replicas: 2 lanes: 64 unroll: 4";

TEST(ServerWorkTest, ExpertsByHand) {
  // All 4 experts of all tokens.
  const Planned planned(
      "d_model: 64 vocabulary: 100 layers { moe { experts: 4 hidden: 128 groups: 2 "
      "gating: GATING_SOFTMAX } }",
      kTraining);
  const Mixture& mixture = planned.mixtures[0];
  const ServerWork work = planned.Server();
  // Of a group: x to 512 rows of each of two experts, their hidden layer and what they give; the
  // group's rows as they come and as they go.
  const Effort products =
      2 * (ProductEffort(kHost, 512, 128, 64, 4) + ProductEffort(kHost, 512, 64, 128, 4));
  const Effort copies =
      ElementEffort(kHost, 1024 * (64 + 128 + 64) + 2 * 512 * 64, kElements.touched);
  EXPECT_NEAR(work.Forward(mixture, 1).total(), (products + copies).total(), 1e-12);
  EXPECT_NEAR(work.Forward(mixture, 2).total(), 2 * (products + copies).total(), 1e-12);
  EXPECT_NEAR(work.Backward(mixture, 1).total(), (products + copies).total(), 1e-12);
}

TEST(ServerWorkTest, ExpertsWithoutRowsCostNothing) {
  // 8 tokens and one expert of 10,000 for each: at most 8 are read.
  const Planned planned(
      "d_model: 64 vocabulary: 100 layers { moe { experts: 10000 k: 1 hidden: 128 "
      "groups: "
      "1 gating: GATING_NOISY_TOP_K } }",
      "replicas: 1 lanes: 2 unroll: 4");
  const HostSpeed reads = {.flops = 1e18, .memory = kGiga};
  const double expert = 2 * 4 * 64 * 128 / kGiga;
  EXPECT_NEAR(planned.Server(reads).Forward(planned.mixtures[0], 1).memory / expert, 8,
              0.01);
  // Read and written, with no optimizer state: SGD.
  std::vector<ShardSpec> experts;
  for (const ShardSpec& shard : planned.plan.shards) {
    if (shard.kind == ShardKind::kExpert) experts.push_back(shard);
  }
  EXPECT_NEAR(planned.Server(reads).Apply(experts).memory / expert, 2 * 8, 0.02);
}

TEST(ServerWorkTest, ATableCostsTheRowsThatAreTouched) {
  const Planned planned(
      "d_model: 64 vocabulary: 100000 tables { shards: 1 candidates: 100 } layers { lstm "
      "{ "
      "hidden: 64 } }",
      kTraining);
  const HostSpeed reads = {.flops = 1e18, .memory = kGiga};
  std::vector<ShardSpec> tables;
  double touched = 0;
  const TableTraffic traffic(planned.job, true);
  for (const ShardSpec& shard : planned.plan.shards) {
    if (shard.kind != ShardKind::kTable) continue;
    tables.push_back(shard);
    const double columns = shard.table == Table::kSoftmax ? 65 : 64;
    touched += traffic.Rows(shard, 2) * columns;
  }
  ASSERT_EQ(tables.size(), 2u);
  // The gradient; parameters read and written.
  EXPECT_NEAR(planned.Server(reads).Apply(tables).memory / (3 * 4 * touched / kGiga), 1,
              1e-6);
}

TEST(ServerWorkTest, ClippingFormsGradientsTwice) {
  Planned planned(
      "d_model: 64 vocabulary: 100 layers { moe { experts: 4 hidden: 128 groups: 2 "
      "gating: GATING_SOFTMAX } }",
      kTraining);
  EXPECT_EQ(planned.Server().SquareSums(planned.plan.shards).total(), 0);
  v1::Job clips = planned.job;
  clips.mutable_optimizer()->set_clip_norm(1);
  // dW of 4 experts over 512 rows each.
  const Effort gradients =
      4 * (ProductEffort(kHost, 64, 128, 512, 0) + ProductEffort(kHost, 128, 64, 512, 0));
  const Effort sums =
      ServerWork(clips, planned.plan, kHost, 0).SquareSums(planned.plan.shards);
  EXPECT_NEAR(sums.arithmetic, gradients.arithmetic, 1e-12);
}

TEST(ServerWorkTest, WhatThereIsNoRoomForIsComputedAgain) {
  const Planned planned(
      "d_model: 64 vocabulary: 100 layers { moe { experts: 4 hidden: 128 groups: 2 "
      "gating: GATING_SOFTMAX } }",
      kTraining);
  // Hidden activations and their gradients, of 512 tokens by 4 experts.
  const int64_t hidden = 2 * 4 * 512 * 4 * 128;
  EXPECT_EQ(RecomputedShare(planned.job, planned.plan.shards, 0), 0);
  EXPECT_EQ(RecomputedShare(planned.job, planned.plan.shards, hidden), 0);
  EXPECT_EQ(RecomputedShare(planned.job, planned.plan.shards, hidden / 4), 0.75);
}

TEST(WorkerWorkTest, SegmentsByHand) {
  const Planned planned(
      "d_model: 64 vocabulary: 100 layers { lstm { hidden: 64 } } layers { moe { "
      "experts: "
      "4 hidden: 128 groups: 2 gating: GATING_SOFTMAX } }",
      "replicas: 2 waves: 2 lanes: 64 unroll: 4");
  const WorkerWork one(planned.job, planned.plan, kHost, 1, 0);
  const WorkerWork two(planned.job, planned.plan, kHost, 2, 0);
  ASSERT_EQ(one.segments().size(), 2u);
  // T = 128 tokens, of 32 lanes.
  const Effort lstm = ProductEffort(kHost, 128, 256, 64, 0) +
                      4 * ProductEffort(kHost, 32, 256, 64, 0) +
                      ElementEffort(kHost, 128 * 64, kElements.cell_forward);
  const Effort gate = ProductEffort(kHost, 128, 4, 64, 0) +
                      ElementEffort(kHost, 128 * 4, kElements.plain_gate_forward);
  // Embedded words, and x off the backend; those and the LSTM's output without dropout.
  const Effort elements = ElementEffort(kHost, 2 * 128 * 64, kElements.touched) +
                          ElementEffort(kHost, 2 * 128 * 64, kElements.residual);
  EXPECT_NEAR(one.segments()[0].forward.total(), (lstm + gate + elements).total(), 1e-12);
  const Effort softmax =
      ProductEffort(kHost, 128, 100, 64, 4) + ProductEffort(kHost, 100, 64, 128, 0) +
      ProductEffort(kHost, 128, 64, 100, 4) +
      ElementEffort(kHost, 128 * 100, kElements.softmax) +
      ElementEffort(kHost, 128 * 64, kElements.touched + kElements.residual);
  EXPECT_NEAR(one.segments()[1].forward.total(), softmax.total(), 1e-12);
  EXPECT_NEAR(two.segments()[0].backward.total(), 2 * one.segments()[0].backward.total(),
              1e-12);
}

}  // namespace
}  // namespace moe
