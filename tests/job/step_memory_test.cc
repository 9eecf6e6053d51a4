#include "common/job/step_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/job/copy_memory.h"
#include "common/job/placement.h"
#include "common/job/table_traffic.h"
#include "tests/job/job_of.h"

namespace moe {
namespace {

constexpr int64_t kProgram = int64_t{28} << 20;
// An array of 2 MiB or more begins up to 65 KiB into whole pages of 4 KiB.
int64_t Large(int64_t bytes) { return (bytes + (65 << 10) + 4095) / 4096 * 4096; }

// Of what comes and goes in the heap within a step: a third more.
int64_t Heap(int64_t bytes) { return bytes * 4 / 3; }

// 2 replicas of 2 lanes by 3 time steps: T = 6 rows of a replica, 12 tokens. Dense parameters:
// embedding 40, LSTM 64 + 64 + 16, gate 16 + 16, softmax 40 + 10: shards of 104 and 162.
// Experts: 2 * 32 each, 128 a group.
constexpr char kModel[] =
    "d_model: 4 vocabulary: 10 layers { lstm { hidden: 4 } } layers { moe { experts: 4 "
    "k: 2 hidden: 8 groups: 2 gating: GATING_NOISY_TOP_K } }";
constexpr int64_t kDense = 4 * 266;
constexpr int64_t kLargestDense = 4 * 162;
constexpr int64_t kExperts = 4 * 256;
// c and h of 2 lanes.
constexpr int64_t kState = 4 * 2 * (4 + 4);

struct Bytes {
  int64_t activations = 0;
  int64_t messages = 0;
};

// kept: to the end of the step, or whatever leaves no holes. Activations, and both together, so that
// no rounding shows.
void ExpectStep(const MemoryNeed& need, Bytes kept, Bytes passing) {
  EXPECT_EQ(need.activations, kept.activations + Heap(passing.activations));
  EXPECT_EQ(
      need.activations + need.messages,
      kept.activations + kept.messages + Heap(passing.activations + passing.messages));
}

void ExpectMore(int64_t bytes, int64_t than, int64_t kept, int64_t passing) {
  EXPECT_NEAR(static_cast<double>(bytes - than),
              static_cast<double>(kept + Heap(passing)), 1);
}

struct Planned {
  explicit Planned(v1::Job made, bool training = true)
      : job(std::move(made)), plan(MakeModelPlan(job)), memory(job, plan, training) {}

  // A server with all shards.
  MemoryNeed OneServer(int threads = 0) const {
    return memory.OfServer(plan.shards, std::vector<std::vector<uint32_t>>{{0}, {1}},
                           {.threads = threads});
  }
  // The same without the dense ones.
  MemoryNeed ExpertServer() const {
    std::vector<ShardSpec> experts;
    for (const ShardSpec& shard : plan.shards) {
      if (shard.kind == ShardKind::kExpert) experts.push_back(shard);
    }
    return memory.OfServer(experts, std::vector<std::vector<uint32_t>>{{0}, {1}}, {});
  }
  MemoryNeed OneWorker() const { return memory.OfWorker(std::vector<uint32_t>{0}); }

  const v1::Job job;
  const ModelPlan plan;
  const StepMemory memory;
};

Planned Small(const std::string& model = kModel,
              const std::string& training = "replicas: 2") {
  return Planned(JobOf(model, training));
}

TEST(StepMemoryTest, OneServerByHand) {
  const Planned small = Small();
  const MemoryNeed need = small.OneServer();
  EXPECT_EQ(need.program, kProgram);
  EXPECT_EQ(need.parameters, kDense + kExperts + 2 * kState);
  EXPECT_EQ(need.optimizer, 0);
  EXPECT_EQ(need.gradients, 0);
  // 12 rows, 24 pairs, and 2 groups with 5 of 6 tokens each: 20 rows to go back.
  const int64_t x = 4 * 12 * 4;
  const int64_t hidden = 4 * 24 * 8;
  // Kept: x, dy, hidden, dhidden and 5 numbers a pair. The close: the pairs' x, gated dy,
  // hidden and dhidden by expert, and a shard's sum.
  // Messages: replies of both passes, which are kept; dense gradients of two workers, states.
  ExpectStep(need, {2 * x + 2 * hidden + 4 * 5 * 24, 4 * (2 * 20 * 4 + 24)},
             {2 * 2 * x + 2 * hidden + kLargestDense, 3 * 2 * kDense + 2 * kState});
  EXPECT_EQ(need.total(), need.program + need.parameters + need.activations +
                              need.messages + need.copies);
}

TEST(StepMemoryTest, OneWorkerByHand) {
  const Planned small = Small();
  const MemoryNeed need = small.OneWorker();
  EXPECT_EQ(need.parameters, 2 * kDense);
  EXPECT_EQ(need.gradients, kDense);
  const int64_t row = 4 * 6 * 4;
  const int64_t logits = 4 * 6 * 10;
  const int64_t lstm = row + 4 * row + row + 2 * (4 * (2 + 6) * 4) + kState + 4 * 2 * 4;
  const int64_t moe = row + 5 * (4 * 6 * 4) + 4 * 10 * (6 * 2) + 2 * row + 2 * row;
  // Messages: the shards as they come in.
  ExpectStep(need, {.activations = logits + 4 * row + lstm + moe},
             {.messages = 3 * kDense});
  EXPECT_EQ(need.optimizer, 0);
}

TEST(StepMemoryTest, WorkersKeepRowsOfAllWavesUntilTheyAreAnswered) {
  // 6000 tokens; both groups have 5 of 6.
  const double rows = 4 * 4 * 6000 * 2 * 5.0 / 6;
  const auto messages = [](int waves) {
    v1::Job job = JobOf(kModel, "replicas: 1");
    job.mutable_training()->set_lanes(200);
    job.mutable_training()->set_unroll(30);
    job.mutable_training()->set_waves(waves);
    return static_cast<double>(Planned(job).OneWorker().messages);
  };
  // One wave's on their way there, twice, and back, three times; the others' once.
  EXPECT_NEAR(messages(1), rows * 5 * 4 / 3, 64);
  EXPECT_NEAR(messages(4), rows * (5 + 3) / 4 * 4 / 3, 64);
}

TEST(StepMemoryTest, ThreadsBoundTheGroupsThatWorkAtOnce) {
  const Planned small = Small();
  const int64_t x_of_group = 4 * 12 * 4;
  const int64_t hidden_of_group = 4 * 12 * 8;
  const int64_t all = small.OneServer().activations;
  EXPECT_EQ(small.OneServer(2).activations, all);
  EXPECT_EQ(small.OneServer(9).activations, all);
  ExpectMore(all, small.OneServer(1).activations, 0, 2 * (x_of_group + hidden_of_group));
}

TEST(StepMemoryTest, ClippingNeedsAllGroupsAndSumsAtOnce) {
  v1::Job job = JobOf(kModel, "replicas: 2");
  job.mutable_optimizer()->set_clip_norm(1);
  ExpectMore(Planned(job).OneServer(1).activations, Small().OneServer(2).activations, 0,
             kDense - kLargestDense);
}

TEST(StepMemoryTest, AWorkerHasAllOfEachReplica) {
  const Planned small = Small(kModel, "replicas: 3");
  const MemoryNeed one = small.memory.OfWorker(std::vector<uint32_t>{1});
  const MemoryNeed two = small.memory.OfWorker(std::vector<uint32_t>{1, 2});
  EXPECT_EQ(two.parameters, one.parameters);
  EXPECT_EQ(two.gradients, 2 * one.gradients);
  EXPECT_NEAR(two.activations, 2 * one.activations, 1);
  EXPECT_NEAR(one.messages, Heap(3 * kDense), 1);
  // Replicas 1 and 2 are no node of the tree together.
  EXPECT_NEAR(two.messages, Heap(2 * 2 * kDense), 1);
}

TEST(StepMemoryTest, AdamHasTwoMoments) {
  v1::Job job = JobOf(kModel, "replicas: 2");
  job.mutable_optimizer()->mutable_adam();
  FillDefaults(&job);
  const MemoryNeed need = Planned(job).OneServer();
  EXPECT_EQ(need.optimizer, 2 * (kDense + kExperts));
  EXPECT_EQ(need.messages, Small().OneServer().messages);
}

TEST(StepMemoryTest, CopiesForACheckpoint) {
  v1::Job job = JobOf(kModel, "replicas: 2");
  job.mutable_optimizer()->mutable_adam();
  FillDefaults(&job);
  // All that steps can change; a piece of a file, and the states before.
  const int64_t rest = kCutChunk + 2 * kState;
  EXPECT_EQ(Planned(job).OneServer().copies, 3 * (kDense + kExperts) + rest);
  const auto copies = [](const v1::Job& job, const ServerLimits& limits,
                         bool training = true) {
    const ModelPlan plan = MakeModelPlan(job);
    return StepMemory(job, plan, training)
        .OfServer(plan.shards, std::vector<std::vector<uint32_t>>{{0}, {1}}, limits)
        .copies;
  };
  EXPECT_EQ(copies(job, {.copy_bytes = 100}), 100 + rest);
  EXPECT_EQ(copies(job, {.copy_bytes = int64_t{1} << 40}),
            3 * (kDense + kExperts) + rest);
  EXPECT_EQ(copies(job, {}, /*training=*/false), 0);
  EXPECT_EQ(Planned(job).OneWorker().copies, 0);

  v1::Job large = JobOf(
      "d_model: 512 vocabulary: 10 layers { moe { experts: 64 k: 1 hidden: 1024 groups: "
      "2 "
      "gating: GATING_NOISY_TOP_K } }",
      "replicas: 2");
  large.mutable_optimizer()->mutable_adam();
  FillDefaults(&large);
  const ModelPlan plan = MakeModelPlan(large);
  int64_t floats = 0;
  for (const TensorSpec& tensor : plan.tensors) floats += tensor.size();
  EXPECT_EQ(copies(large, {}), 3 * 4 * floats / 4 + kCutChunk + CarriedStateBytes(large));
  // Of experts on disk copies are in memory, too.
  EXPECT_EQ(copies(large, {.tier = true}),
            (int64_t{64} << 20) + kCutChunk + CarriedStateBytes(large));
}

// Rows have counts that are copied, too.
TEST(StepMemoryTest, CopiesOfTables) {
  v1::Job job = JobOf(
      "d_model: 4 vocabulary: 100 tables { shards: 2 candidates: 6 } "
      "layers { lstm { hidden: 4 } }",
      "replicas: 2");
  const int64_t tables = 100 * (4 * (4 + 5) + 2 * 8);
  const int64_t lstm = 4 * (64 + 64 + 16);
  EXPECT_EQ(Planned(job).OneServer().copies, tables + lstm + kCutChunk + 2 * kState);
}

TEST(StepMemoryTest, ServersNeedWhatTheyHost) {
  const Planned small = Small();
  std::vector<ShardSpec> dense, experts;
  for (const ShardSpec& shard : small.plan.shards) {
    (shard.kind == ShardKind::kExpert ? experts : dense).push_back(shard);
  }
  const std::vector<std::vector<uint32_t>> owned = {{0, 1}};
  const MemoryNeed of_dense = small.memory.OfServer(dense, owned, {});
  EXPECT_EQ(of_dense.parameters, kDense + 2 * kState);
  ExpectStep(of_dense, {}, {kLargestDense, 3 * kDense + 2 * kState});
  EXPECT_EQ(small.memory.OfServer(experts, owned, {}).parameters, kExperts);
  // One group of the two: 10 rows of 12, 12 pairs. A wave takes more than the end of the
  // step: the group's x, y and sums, and its rows, decoded and as they come in.
  experts.pop_back();
  const MemoryNeed half = small.memory.OfServer(experts, owned, {});
  const int64_t rows = 4 * 10 * 4;
  ExpectStep(half, {2 * rows + 2 * (4 * 12 * 8) + 4 * 5 * 12, 4 * (2 * 10 * 4 + 12)},
             {2 * (4 * 12 * 4) + rows + rows, 3 * rows});
  EXPECT_EQ(small.memory.OfServer({}, owned, {}).total(), kProgram);
}

TEST(StepMemoryTest, EvaluationKeepsNothing) {
  const Planned evaluated(JobOf(kModel, "replicas: 2"), /*training=*/false);
  const MemoryNeed need = evaluated.ExpertServer();
  // Two groups' x, y, sums and hidden activations; rows, decoded and as they come in, and
  // the replies.
  const int64_t rows = 4 * 12 * 4;
  ExpectStep(need, {},
             {2 * 2 * rows + 4 * 20 * 4 + 4 * 24 * 8 + rows, 3 * rows + 4 * 20 * 4});
  // Dense shards that two workers pull are more than that.
  EXPECT_EQ(evaluated.OneServer().messages, Heap(2 * 2 * kDense));
  EXPECT_EQ(evaluated.OneServer().activations, 0);
}

// An evaluation makes the matrices of experts that no step has touched.
TEST(StepMemoryTest, AnEvaluationOnATierHasAnExpertOnEachThread) {
  const std::string moe =
      "d_model: 64 vocabulary: 10 layers { moe { experts: 16 k: 2 hidden: 1024 groups: 2 "
      "gating: GATING_NOISY_TOP_K ";
  // 64 x 1,024 floats, two matrices and one of them once more; as bf16 half of that and one and a
  // half of a matrix of floats.
  const int64_t matrix = 4 * 64 * 1024;
  for (const auto& [parameters, bytes] :
       {std::pair("", 3 * matrix),
        std::pair("parameters: PARAMETERS_BFLOAT16", 5 * matrix / 2)}) {
    for (bool training : {false, true}) {
      const Planned planned(JobOf(absl::StrCat(moe, parameters, " } }"), "replicas: 2"),
                            training);
      const auto need = [&](int threads) {
        return planned.memory
            .OfServer(planned.plan.shards, std::vector<std::vector<uint32_t>>{{0}, {1}},
                      {.threads = threads, .tier = true})
            .activations;
      };
      // No more than there are.
      ExpectMore(need(16), need(8), 0, 8 * bytes);
      EXPECT_EQ(need(100), need(16));
    }
  }
}

// Two layers of which one alone would have room, in either order.
TEST(StepMemoryTest, AnActivationBudgetDoesNotDependOnTheOrderOfLayers) {
  const auto moe = [](int hidden) {
    return absl::StrCat("layers { moe { experts: 4 k: 2 hidden: ", hidden,
                        " groups: 2 gating: GATING_NOISY_TOP_K } } ");
  };
  const auto need = [&](const std::string& layers, int64_t budget) {
    const Planned planned = Small(absl::StrCat("d_model: 4 vocabulary: 10 ", layers));
    return planned.memory
        .OfServer(planned.plan.shards, std::vector<std::vector<uint32_t>>{{0}, {1}},
                  {.threads = 1, .activation_bytes = budget})
        .activations;
  };
  // hidden and dhidden of 24 pairs.
  const int64_t small = 2 * 4 * 24 * 8;
  const int64_t large = 2 * 4 * 24 * 800;
  for (const int64_t budget : {small + 1, large + 1, large + small - 1}) {
    EXPECT_EQ(need(moe(8) + moe(800), budget), need(moe(800) + moe(8), budget)) << budget;
  }
  EXPECT_EQ(need(moe(8) + moe(800), large + small), need(moe(8) + moe(800), 0));
}

// ---------------------------------------------------------------- kinds of layers

TEST(StepMemoryTest, EveryHiddenLayerOfAnExpertCounts) {
  const auto moe = [](const std::string& hidden) {
    return Small("d_model: 4 vocabulary: 10 layers { moe { experts: 4 k: 2 groups: 2 " +
                 hidden + " gating: GATING_NOISY_TOP_K } }");
  };
  const MemoryNeed one = moe("hidden: 8").OneServer();
  const MemoryNeed two = moe("hidden: 8 hidden: 6").OneServer();
  EXPECT_EQ(two.parameters - one.parameters, 4 * 4 * (8 * 6 + 6 * 4 - 8 * 4));
  // Forward and backward, kept and gathered.
  ExpectMore(two.activations, one.activations, 2 * (4 * 24 * 6), 2 * (4 * 24 * 6));
}

TEST(StepMemoryTest, SecondaryGatesAreOnServers) {
  const std::string moe =
      "moe { experts: 4 groups: 2 hidden: 8 gating: GATING_NOISY_TOP_K ";
  const std::string model = "d_model: 4 vocabulary: 10 layers { " + moe;
  const Planned flat = Small(model + "k: 2 } }");
  const Planned hierarchical = Small(model + "k_primary: 1 k: 2 } }");
  // [4, 2] wg and wnoise of each of two groups, and of the primary gate in place of [4, 4].
  EXPECT_EQ(hierarchical.OneServer().parameters - flat.OneServer().parameters,
            4 * (2 * 2 * 8 + 2 * 8 - 2 * 16));
  // A token goes to one group of the two: 12 rows back. Of each of these the gate keeps three
  // times 2 logits, 2 numbers, and 2 of each of the 2 pairs; at the close x and both gradients.
  ExpectMore(hierarchical.ExpertServer().activations, flat.ExpertServer().activations,
             4 * 12 * (3 * 2 + 2 + 2 * 2), 4 * 12 * (4 + 2 * 2));
  // The worker's gate chooses one of two instead of two of four.
  ExpectMore(flat.OneWorker().activations, hierarchical.OneWorker().activations,
             4 * 6 * 5 * (4 - 2) + 4 * 6 * 10 * (2 - 1), 0);
}

TEST(StepMemoryTest, GatesWithoutNoiseKeepNoLogits) {
  const std::string moe =
      "d_model: 4 vocabulary: 10 layers { moe { experts: 4 groups: 2 hidden: 8 ";
  const MemoryNeed noisy = Small(moe + "k: 2 gating: GATING_NOISY_TOP_K } }").OneWorker();
  const MemoryNeed strict =
      Small(moe + "k: 2 gating: GATING_STRICTLY_BALANCED } }").OneWorker();
  const MemoryNeed softmax = Small(moe + "gating: GATING_SOFTMAX } }").OneWorker();
  ExpectMore(noisy.activations, strict.activations, 3 * (4 * 6 * 4), 0);
  // Twice as many choices.
  ExpectMore(softmax.activations, strict.activations, 4 * 10 * (6 * 2), 0);
}

TEST(StepMemoryTest, SoftmaxSendsEveryRowToEveryExpert) {
  const Planned softmax = Small(
      "d_model: 4 vocabulary: 10 layers { moe { experts: 4 groups: 2 hidden: 8 gating: "
      "GATING_SOFTMAX } }");
  // 12 rows, 48 pairs, 24 rows to go back.
  const MemoryNeed need = softmax.ExpertServer();
  ExpectStep(need,
             {2 * (4 * 12 * 4) + 2 * (4 * 48 * 8) + 4 * 5 * 48, 4 * (2 * 24 * 4 + 48)},
             {.activations = 2 * (4 * 48 * 4) + 2 * (4 * 48 * 8)});
}

TEST(StepMemoryTest, AProjectedLstmKeepsBothWidths) {
  const MemoryNeed need =
      Small("d_model: 4 vocabulary: 10 layers { lstm { hidden: 8 projection: 4 } }")
          .OneWorker();
  const int64_t row = 4 * 6 * 4;
  const int64_t lstm =
      row + 4 * (6 * 32 + 2 * 6 * 8 + 8 * 8 + 8 * 4 + 2 * 12 + 2 * 2 * 8);
  EXPECT_EQ(need.activations, 4 * 6 * 10 + 4 * row + lstm);
}

// d = H = 4, 2 lanes and 3 time steps; 2 of 4 linear experts, 1 of 2 of one hidden layer.
constexpr char kRecurrent[] =
    "d_model: 4 vocabulary: 10 layers { recurrent_moe { hidden: 4 "
    "input { experts: 4 k: 2 groups: 2 gating: GATING_NOISY_TOP_K } "
    "recurrent { experts: 2 k: 1 hidden: 8 groups: 1 gating: GATING_NOISY_TOP_K } ";

TEST(StepMemoryTest, ARecurrentMoeOnAServer) {
  const Planned recurrent = Small(absl::StrCat(kRecurrent, "} }"));
  // Of both: x and dy, 5 numbers of each pair, hidden and dhidden; then the end of the step of the
  // input mixture, which is larger: x and gated dy of its 24 pairs by expert. 12 tokens in one
  // call, or 4 in each of three.
  const MemoryNeed need = recurrent.ExpertServer();
  const int64_t input = 4 * 12 * (4 + 16) + 4 * 5 * 24;
  const int64_t steps = 3 * (4 * 4 * (4 + 16) + 2 * 4 * 4 * 8 + 4 * 5 * 4);
  const int64_t close = 4 * 24 * (4 + 16);
  // In a wave: the input mixture's x, its y or dy and once more x of 24 pairs, sums of 20 rows;
  // 12 rows of 16 numbers, decoded and as they come in.
  const int64_t wave = 4 * 24 * (4 + 16 + 4) + 4 * 20 * 16;
  const int64_t rows = 4 * 12 * 16;
  const int64_t replies = 4 * (20 * (4 + 16) + 24) + 3 * 4 * (4 * (4 + 16) + 4);
  EXPECT_GT(wave + 4 * rows, close);
  ExpectStep(need, {input + steps, replies}, {wave + rows, 3 * rows});
}

TEST(StepMemoryTest, RecomputationKeepsStatesInsteadOfTimeSteps) {
  const MemoryNeed all = Small(absl::StrCat(kRecurrent, "} }")).OneWorker();
  const MemoryNeed two =
      Small(absl::StrCat(kRecurrent, "kept_states: 2 } }")).OneWorker();
  // Without: tanh(c) of 6 rows, c and h of 2 more; three numbers for each of the 2 experts and each
  // row; expert and gate of the choice of each row. With: of 2 rows, c and h of twice 2; gates of one
  // time step, 2 states; three numbers for the rows of one time step, and their choices.
  const int64_t without = 4 * (6 * 4 + 2 * (2 + 6) * 4) + 4 * 3 * 6 * 2 + 4 * 2 * 6;
  const int64_t with =
      4 * (2 * 4 + 2 * 4 * 4) + 4 * 2 * 16 + 2 * (4 * 2 * 8) + 4 * 3 * 2 * 2 + 4 * 2 * 2;
  EXPECT_LT(with, without);
  ExpectMore(all.activations, two.activations, without - with, 0);
  // No more states than time steps.
  EXPECT_EQ(
      Small(absl::StrCat(kRecurrent, "kept_states: 30 } }")).OneWorker().activations,
      Small(absl::StrCat(kRecurrent, "kept_states: 3 } }")).OneWorker().activations);
  // The rest of it: logits; what a model has anyway; the layer's output, z and its gradient off the
  // backend, dr, dc, the state, rows of a time step and from servers.
  const int64_t row = 4 * 6 * 4;
  const int64_t layer = row + 2 * (4 * row) + row + 4 * 2 * 4 + 4 * 2 * 8 + 4 * 2 * 16;
  // Both gates: gradients, choices, input off the backend; the input's logits, raw and noise.
  const int64_t input = (3 + 2) * (4 * 6 * 4) + 4 * 10 * 6 * 2 + row;
  const int64_t gate = 2 * (4 * 2 * 2) + 3 * (4 * 8 * 2) + 4 * 2 * 4;
  EXPECT_EQ(all.activations,
            4 * 6 * 10 + 3 * row + 4 * row + layer + input + gate + without);
}

// ---------------------------------------------------------------- tables

constexpr char kTables[] =
    "d_model: 4 vocabulary: 100 tables { shards: 2 candidates: 6 } "
    "layers { lstm { hidden: 4 } }";
constexpr int64_t kLstm = 4 * (64 + 64 + 16);
constexpr int64_t kLargestOfLstm = 4 * (64 + 16);

std::vector<ShardSpec> TablesOf(const ModelPlan& plan) {
  std::vector<ShardSpec> tables;
  for (const ShardSpec& shard : plan.shards) {
    if (shard.kind == ShardKind::kTable) tables.push_back(shard);
  }
  return tables;
}

TEST(StepMemoryTest, TablesCostTheRowsThatAStepTouches) {
  const Planned tables = Small(kTables);
  const TableTraffic traffic(tables.job, /*training=*/true);
  const MemoryNeed server = tables.OneServer();
  EXPECT_EQ(server.parameters, 4 * (100 * 4 + 100 * 5) + kLstm + 2 * kState);
  // A count of eight bytes for each of the tables' rows.
  EXPECT_EQ(server.optimizer, 8 * 200);
  // The sums over both replicas, and one shard's off the backend and on it; beside them the
  // larger dense shard. Messages: each worker's gradients.
  int64_t sums = 0;
  int64_t largest = 0;
  int64_t largest_of_replica = 0;
  for (const ShardSpec& shard : TablesOf(tables.plan)) {
    const int64_t bytes = traffic.Bytes({&shard, 1}, 2);
    sums += bytes;
    largest = std::max(largest, bytes);
    largest_of_replica = std::max(largest_of_replica, traffic.Bytes({&shard, 1}, 1));
  }
  const int64_t by_replica = traffic.Bytes(tables.plan.shards, 1);
  ExpectStep(server, {},
             {sums + 2 * largest + kLargestOfLstm,
              3 * 2 * kLstm + 2 * 2 * by_replica + 2 * kState});

  const MemoryNeed worker = tables.OneWorker();
  EXPECT_EQ(worker.parameters, 2 * kLstm);
  const int64_t row = 4 * 6 * 4;
  const int64_t layer = row + 4 * row + row + 2 * (4 * (2 + 6) * 4) + kState + 4 * 2 * 4;
  // Rows and gradients of input and target words; gradients of the candidates, and their rows.
  const double words = DistinctWords(0, 100, 6, 100);
  const int64_t rows =
      2 * (2 * std::llround(4 * words) + std::llround(words)) + 2 * (6 * 4 + 6);
  // The fifth row: the softmax's input in evaluations.
  ExpectStep(worker, {.activations = 5 * row + layer},
             {4 * rows + 4 * 6 * (6 + 1),
              std::max({3 * kLstm, 2 * (kLstm + by_replica),
                        kLstm + kLargestOfLstm + 2 * by_replica + largest_of_replica})});
}

// The low ranges of words have most of what a step names.
TEST(StepMemoryTest, FrequentWordsCostMore) {
  const Planned tables = Small(
      "d_model: 4 vocabulary: 10000 tables { shards: 4 candidates: 4000 } "
      "layers { lstm { hidden: 4 } }",
      "replicas: 4");
  const TableTraffic traffic(tables.job, /*training=*/true);
  const std::vector<ShardSpec> shards = TablesOf(tables.plan);
  ASSERT_EQ(shards.size(), 8u);
  int64_t before = 0;
  for (int shard = 7; shard >= 4; --shard) {
    const int64_t messages =
        tables.memory
            .OfServer({&shards[shard], 1},
                      std::vector<std::vector<uint32_t>>{{0, 3}, {1, 2}}, {.threads = 1})
            .messages;
    // Four nodes of one replica.
    const int64_t pushed = 4 * traffic.Bytes({&shards[shard], 1}, 1);
    EXPECT_NEAR(messages, Heap(2 * pushed), 2);
    EXPECT_GT(messages, before);
    before = messages;
  }
  EXPECT_GT(traffic.Rows(shards[4], 1), 1.9 * traffic.Rows(shards[5], 1));
}

// A worker with replicas 0 to 2 of 4 pushes two nodes, and each has the candidates.
TEST(StepMemoryTest, CandidatesCountForEachNodeThatAWorkerPushes) {
  const Planned tables = Small(
      "d_model: 4 vocabulary: 10000 tables { shards: 1 candidates: 4000 } "
      "layers { lstm { hidden: 4 } }",
      "replicas: 4");
  const std::vector<ShardSpec> shards = TablesOf(tables.plan);
  const auto need = [&](std::vector<std::vector<uint32_t>> owned) {
    return tables.memory.OfServer(shards, owned, {.threads = 1});
  };
  const int64_t candidates = 4 * 4000 * 6;
  EXPECT_NEAR(need({{0, 1}, {2, 3}}).messages, Heap(2 * 2 * candidates),
              0.05 * candidates);
  EXPECT_NEAR(need({{0, 1, 2}, {3}}).messages, Heap(2 * 3 * candidates),
              0.05 * candidates);
  EXPECT_NEAR(need({{0, 3}, {1, 2}}).messages, Heap(2 * 4 * candidates),
              0.05 * candidates);
  // On the worker as well: each replica off the backend, again where its only shard is joined, and
  // the nodes as messages.
  const auto of_worker = [&](std::vector<uint32_t> owned) {
    return tables.memory.OfWorker(owned).messages;
  };
  EXPECT_NEAR(of_worker({0, 1, 2}), Heap((3 * 2 + 2) * candidates), 0.1 * candidates);
  EXPECT_NEAR(of_worker({0, 1, 2, 3}), Heap((4 * 2 + 1) * candidates), 0.1 * candidates);
}

TEST(StepMemoryTest, ClippingNeedsAllTablesAtOnce) {
  v1::Job job = JobOf(kTables, "replicas: 2");
  job.mutable_optimizer()->set_clip_norm(1);
  const TableTraffic traffic(job, /*training=*/true);
  const Planned clipped(job);
  int64_t sums = 0;
  for (const ShardSpec& shard : TablesOf(clipped.plan)) {
    sums += traffic.Bytes({&shard, 1}, 2);
  }
  EXPECT_EQ(clipped.OneServer().activations, Heap(2 * sums + kLstm));
}

// Of 512 tokens of each replica that computes, and in training only.
TEST(StepMemoryTest, LogitsOfCandidatesAreOfOneBlock) {
  const auto job = [](int32_t unroll, int32_t candidates) {
    v1::Job job = JobOf(absl::StrCat("d_model: 4 vocabulary: 100000 tables { shards: 2 "
                                     "candidates: ",
                                     candidates, " } layers { lstm { hidden: 4 } }"),
                        "replicas: 8");
    job.mutable_training()->set_lanes(64);
    job.mutable_training()->set_unroll(unroll);
    return job;
  };
  const auto need = [&](int32_t unroll, int32_t candidates, int threads, bool training) {
    const Planned planned(job(unroll, candidates), training);
    return planned.memory
        .OfWorker(std::vector<uint32_t>{0, 1, 2}, /*score_servers=*/0, threads)
        .activations;
  };
  // 512 * 4,097 floats; of 64 tokens 64 * 4,097, in the heap.
  const int64_t two = need(40, 4096, 2, true);
  EXPECT_EQ(two - need(40, 4096, 1, true), Large(4 * 512 * 4097));
  EXPECT_EQ(need(40, 4096, 3, true) - two, Large(4 * 512 * 4097));
  EXPECT_EQ(need(40, 4096, 9, true), need(40, 4096, 0, true));
  EXPECT_EQ(need(40, 4096, 0, true), need(40, 4096, 3, true));
  ExpectMore(need(1, 4096, 2, true), need(1, 4096, 1, true), 0, 4 * 64 * 4097);
  EXPECT_EQ(need(40, 4096, 3, false), need(40, 8, 1, false));
  // On a member of a cluster.
  const Planned planned(job(40, 4096));
  const MemoryNeeds needs = ComputeMemoryNeeds(
      planned.job, planned.plan, MakePlacement(planned.plan, {"server/a"}),
      AssignReplicas(8, {"worker/a", "worker/b"}), {{"server/a", {}}}, {{"worker/a", 1}},
      /*training=*/true);
  EXPECT_EQ(needs.at("worker/b").activations - needs.at("worker/a").activations,
            3 * Large(4 * 512 * 4097));
}

// Two requests of each worker, with 512 tokens at most; logits of 4,096 words.
TEST(StepMemoryTest, ScoresUnderWay) {
  const std::string model =
      "d_model: 64 vocabulary: 10000 tables { shards: 2 candidates: 6 } "
      "layers { lstm { hidden: 64 } }";
  v1::Job job = JobOf(model, "replicas: 2");
  job.mutable_training()->set_lanes(100);
  job.mutable_training()->set_unroll(20);
  const Planned evaluated(job, /*training=*/false);
  const int64_t x = 4 * 512 * 64;
  const MemoryNeed server = evaluated.memory.OfServer(
      TablesOf(evaluated.plan), std::vector<std::vector<uint32_t>>{{0}, {1}},
      {.threads = 1});
  EXPECT_EQ(server.activations, Heap(2 * 2 * x) + Large(4 * 512 * 4096));
  EXPECT_EQ(server.messages, Heap(2 * 2 * x + 2 * 3 * x) - Heap(2 * 2 * x));
  const std::vector<uint32_t> owned = {0};
  const int64_t few = evaluated.memory.OfWorker(owned, 4).messages;
  const int64_t many = evaluated.memory.OfWorker(owned, 8).messages;
  // Two that may have to be sent again, and one on its way.
  ExpectMore(many, few, 0, 4 * 3 * x);
  // A worker of two replicas sends no more at a time.
  const MemoryNeed of_one = evaluated.memory.OfServer(
      TablesOf(evaluated.plan), std::vector<std::vector<uint32_t>>{{0, 1}},
      {.threads = 1});
  EXPECT_EQ(of_one.activations, Heap(2 * x) + Large(4 * 512 * 4097));
}

// ---------------------------------------------------------------- large arrays, clusters

TEST(StepMemoryTest, LargeArraysTakeWholePages) {
  // 2^19 floats are a huge page; where they begin takes some small ones.
  const Planned large =
      Small("d_model: 1 vocabulary: 524288 layers { lstm { hidden: 1 } }", "replicas: 2");
  const int64_t embedding = 4 * (int64_t{1} << 19);
  const MemoryNeed need = large.OneWorker();
  const int64_t dense = 3 * embedding + 4 * 12;
  // The shards: embedding and softmax.w with its bias, or the other way round; beside them those of
  // the LSTM.
  EXPECT_NEAR(need.gradients, Large(embedding) + Large(2 * embedding), 8192);
  EXPECT_EQ(need.parameters, need.gradients + dense);
  EXPECT_LT(need.gradients, 1.05 * static_cast<double>(3 * embedding));
  // The larger shard's sum.
  EXPECT_NEAR(large.OneServer().activations, Large(2 * embedding), 8192);
}

TEST(StepMemoryTest, AQuarterMoreOfLargeArraysThatComeAndGo) {
  const Planned large = Small(
      "d_model: 4 vocabulary: 10 layers { moe { experts: 4 k: 2 hidden: 100000 groups: 2 "
      "gating: GATING_NOISY_TOP_K } }");
  // hidden and dhidden, [12, 100000] of each group, and once more at the end.
  const int64_t array = Large(4 * 12 * 100000);
  const int64_t kept = 2 * (4 * 12 * 4) + 4 * 5 * 24;
  const int64_t passing = 2 * 2 * (4 * 12 * 4);
  EXPECT_NEAR(large.ExpertServer().activations, 8 * array * 5 / 4 + kept + Heap(passing),
              8);
}

TEST(StepMemoryTest, OfEveryMemberOfACluster) {
  const Planned small = Small();
  const std::vector<std::string> servers = {"server/a", "server/b"};
  const v1::Placement placement = MakePlacement(small.plan, servers);
  const auto replicas = AssignReplicas(2, {"worker/a", "worker/b"});
  const MemoryNeeds needs = ComputeMemoryNeeds(
      small.job, small.plan, placement, replicas,
      {{"server/a", {.threads = 1}}, {"server/b", {}}, {"server/c", {}}},
      /*worker_threads=*/{}, /*training=*/true);
  EXPECT_EQ(needs.size(), 5u);
  EXPECT_EQ(needs.at("server/a").parameters + needs.at("server/b").parameters,
            small.OneServer().parameters);
  EXPECT_EQ(needs.at("server/c").total(), kProgram);
  EXPECT_EQ(needs.at("worker/b").total(), small.OneWorker().total());
}

TEST(StepMemoryTest, SecondCopiesCountAsTheFirst) {
  const Planned small = Small();
  const auto replicas = AssignReplicas(2, {"worker/a"});
  const auto needs = [&](const std::vector<std::string>& servers, int copies) {
    std::map<std::string, ServerLimits> limits;
    for (const std::string& server : servers) limits[server] = {.threads = 1};
    return ComputeMemoryNeeds(small.job, small.plan,
                              MakePlacement(small.plan, servers, copies), replicas,
                              limits,
                              /*worker_threads=*/{}, /*training=*/true);
  };
  const MemoryNeeds single = needs({"server/a", "server/b"}, 1);
  const MemoryNeeds twice = needs({"server/a", "server/b"}, 2);
  // Of two servers each has all.
  const MemoryNeeds all = needs({"server/a"}, 1);
  for (const char* server : {"server/a", "server/b"}) {
    EXPECT_EQ(twice.at(server).total(), all.at("server/a").total());
  }
  EXPECT_GT(twice.at("worker/a").messages, single.at("worker/a").messages);
  EXPECT_LE(twice.at("worker/a").messages, 2 * single.at("worker/a").messages);
  EXPECT_EQ(twice.at("worker/a").activations, single.at("worker/a").activations);
}

TEST(StepMemoryTest, Describes) {
  MemoryNeed need;
  need.parameters = int64_t{3} << 30;
  need.optimizer = int64_t{6} << 30;
  need.messages = int64_t{1} << 30;
  need.program = int64_t{1} << 20;
  EXPECT_EQ(Describe(need),
            "10.0 GiB (parameters 3.0 GiB, optimizer state 6.0 GiB, messages 1.0 GiB)");
}

}  // namespace
}  // namespace moe
