#include "common/job/step_memory.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/job/placement.h"
#include "tests/job/job_of.h"

namespace moe {
namespace {

constexpr int64_t kProgram = int64_t{28} << 20;
constexpr int64_t kHugePage = int64_t{2} << 20;

// Of what comes and goes in the heap: a third more.
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

// Of the two together, so that no rounding shows.
void ExpectStep(const MemoryNeed& need, int64_t activations, int64_t messages) {
  EXPECT_EQ(need.activations, Heap(activations));
  EXPECT_EQ(need.activations + need.messages, Heap(activations + messages));
}

void ExpectMore(int64_t bytes, int64_t than, int64_t by) {
  EXPECT_NEAR(static_cast<double>(bytes - than), static_cast<double>(Heap(by)), 1);
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
  // Messages: replies of both passes, dense gradients of two workers, states.
  ExpectStep(need,
             2 * x + 2 * hidden + 4 * 5 * 24 + (2 * 2 * x + 2 * hidden) + kLargestDense,
             4 * (2 * 20 * 4 + 24) + 3 * 2 * kDense + 2 * kState);
  EXPECT_EQ(need.total(),
            need.program + need.parameters + need.activations + need.messages);
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
  ExpectStep(need, logits + 4 * row + lstm + moe, 3 * kDense);
  EXPECT_EQ(need.optimizer, 0);
}

TEST(StepMemoryTest, ThreadsBoundTheGroupsThatWorkAtOnce) {
  const Planned small = Small();
  const int64_t x_of_group = 4 * 12 * 4;
  const int64_t hidden_of_group = 4 * 12 * 8;
  const int64_t all = small.OneServer().activations;
  EXPECT_EQ(small.OneServer(2).activations, all);
  EXPECT_EQ(small.OneServer(9).activations, all);
  ExpectMore(all, small.OneServer(1).activations, 2 * (x_of_group + hidden_of_group));
}

TEST(StepMemoryTest, ClippingNeedsAllGroupsAndSumsAtOnce) {
  v1::Job job = JobOf(kModel, "replicas: 2");
  job.mutable_optimizer()->set_clip_norm(1);
  ExpectMore(Planned(job).OneServer(1).activations, Small().OneServer(2).activations,
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
  EXPECT_EQ(Planned(job).OneServer().optimizer, 2 * (kDense + kExperts));
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
  ExpectStep(of_dense, kLargestDense, 3 * kDense + 2 * kState);
  EXPECT_EQ(small.memory.OfServer(experts, owned, {}).parameters, kExperts);
  // One group of the two: 10 rows of 12, 12 pairs. A wave takes more than the end of the
  // step: the group's x, y and sums, and its rows, decoded and as they come in.
  experts.pop_back();
  const MemoryNeed half = small.memory.OfServer(experts, owned, {});
  const int64_t rows = 4 * 10 * 4;
  ExpectStep(half, 2 * rows + 2 * (4 * 12 * 8) + 4 * 5 * 12 + 2 * (4 * 12 * 4) + rows,
             4 * (2 * 10 * 4 + 12) + 4 * rows);
  EXPECT_EQ(small.memory.OfServer({}, owned, {}).total(), kProgram);
}

TEST(StepMemoryTest, EvaluationKeepsNothing) {
  const Planned evaluated(JobOf(kModel, "replicas: 2"), /*training=*/false);
  const MemoryNeed need = evaluated.ExpertServer();
  // Two groups' x, y, sums and hidden activations; rows, decoded and as they come in, and
  // the replies.
  ExpectStep(need, 2 * 2 * (4 * 12 * 4) + 4 * 20 * 4 + 4 * 24 * 8,
             4 * (4 * 12 * 4) + 4 * 20 * 4);
  // Dense shards that two workers pull are more than that.
  EXPECT_EQ(evaluated.OneServer().messages, Heap(2 * 2 * kDense));
  EXPECT_EQ(evaluated.OneServer().activations, 0);
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
  ExpectMore(two.activations, one.activations, 4 * (4 * 24 * 6));
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
             4 * 12 * (3 * 2 + 2 + 2 * 2) + 4 * 12 * (4 + 2 * 2));
  // The worker's gate chooses one of two instead of two of four.
  ExpectMore(flat.OneWorker().activations, hierarchical.OneWorker().activations,
             4 * 6 * 5 * (4 - 2) + 4 * 6 * 10 * (2 - 1));
}

TEST(StepMemoryTest, GatesWithoutNoiseKeepNoLogits) {
  const std::string moe =
      "d_model: 4 vocabulary: 10 layers { moe { experts: 4 groups: 2 hidden: 8 ";
  const MemoryNeed noisy = Small(moe + "k: 2 gating: GATING_NOISY_TOP_K } }").OneWorker();
  const MemoryNeed strict =
      Small(moe + "k: 2 gating: GATING_STRICTLY_BALANCED } }").OneWorker();
  const MemoryNeed softmax = Small(moe + "gating: GATING_SOFTMAX } }").OneWorker();
  ExpectMore(noisy.activations, strict.activations, 3 * (4 * 6 * 4));
  // Twice as many choices.
  ExpectMore(softmax.activations, strict.activations, 4 * 10 * (6 * 2));
}

TEST(StepMemoryTest, SoftmaxSendsEveryRowToEveryExpert) {
  const Planned softmax = Small(
      "d_model: 4 vocabulary: 10 layers { moe { experts: 4 groups: 2 hidden: 8 gating: "
      "GATING_SOFTMAX } }");
  // 12 rows, 48 pairs, 24 rows to go back.
  const MemoryNeed need = softmax.ExpertServer();
  ExpectStep(need,
             2 * (4 * 12 * 4) + 2 * (4 * 48 * 8) + 4 * 5 * 48 + 2 * (4 * 48 * 4) +
                 2 * (4 * 48 * 8),
             4 * (2 * 24 * 4 + 48));
}

TEST(StepMemoryTest, AProjectedLstmKeepsBothWidths) {
  const MemoryNeed need =
      Small("d_model: 4 vocabulary: 10 layers { lstm { hidden: 8 projection: 4 } }")
          .OneWorker();
  const int64_t row = 4 * 6 * 4;
  const int64_t lstm =
      row + 4 * (6 * 32 + 2 * 6 * 8 + 8 * 8 + 8 * 4 + 2 * 12 + 2 * 2 * 8);
  EXPECT_EQ(need.activations, Heap(4 * 6 * 10 + 4 * row + lstm));
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
  const int64_t rows = 4 * (4 * 12 * 16);
  const int64_t replies = 4 * (20 * (4 + 16) + 24) + 3 * 4 * (4 * (4 + 16) + 4);
  EXPECT_GT(wave + rows, close);
  ExpectStep(need, input + steps + wave, replies + rows);
}

TEST(StepMemoryTest, RecomputationKeepsStatesInsteadOfTimeSteps) {
  const MemoryNeed all = Small(absl::StrCat(kRecurrent, "} }")).OneWorker();
  const MemoryNeed two =
      Small(absl::StrCat(kRecurrent, "kept_states: 2 } }")).OneWorker();
  // Without: tanh(c) of 6 rows, c and h of 2 more; three numbers for each of the 2 experts and each
  // row. With: of 2 rows, c and h of twice 2; gates of one time step, 2 states; three numbers for
  // the rows of one time step.
  const int64_t without = 4 * (6 * 4 + 2 * (2 + 6) * 4) + 4 * 3 * 6 * 2;
  const int64_t with =
      4 * (2 * 4 + 2 * 4 * 4) + 4 * 2 * 16 + 2 * (4 * 2 * 8) + 4 * 3 * 2 * 2;
  EXPECT_LT(with, without);
  ExpectMore(all.activations, two.activations, without - with);
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
  const int64_t gate = 2 * (4 * 2 * 2) + 3 * (4 * 10 * 2) + 4 * 2 * 4;
  EXPECT_EQ(all.activations,
            Heap(4 * 6 * 10 + 3 * row + 4 * row + layer + input + gate + without));
}

TEST(StepMemoryTest, TablesCostTheRowsThatAStepTouches) {
  const Planned tables = Small(
      "d_model: 4 vocabulary: 100 tables { shards: 2 candidates: 6 } "
      "layers { lstm { hidden: 4 } }");
  const int64_t lstm = 4 * (64 + 64 + 16);
  const MemoryNeed server = tables.OneServer();
  EXPECT_EQ(server.parameters, 4 * (100 * 4 + 100 * 5) + lstm + 2 * kState);
  // 12 words of the step, 6 of a replica; beside them the larger dense shard.
  const int64_t touched = 4 * (12 * 4 + (12 + 6) * 5);
  const int64_t by_replica = 4 * (6 * 4 + (6 + 6) * 5);
  ExpectStep(server, touched + 4 * (64 + 16),
             3 * (2 * lstm + 2 * by_replica) + 2 * kState);

  const MemoryNeed worker = tables.OneWorker();
  EXPECT_EQ(worker.parameters, 2 * lstm);
  const int64_t row = 4 * 6 * 4;
  const int64_t layer = row + 4 * row + row + 2 * (4 * (2 + 6) * 4) + kState + 4 * 2 * 4;
  ExpectStep(worker, 2 * by_replica + 4 * 6 * (6 + 1) + 4 * row + layer,
             3 * (lstm + by_replica));
}

// ---------------------------------------------------------------- large arrays, clusters

TEST(StepMemoryTest, LargeArraysTakeWholeHugePages) {
  // 2^19 floats are a huge page; where they begin takes a second one.
  const Planned large =
      Small("d_model: 1 vocabulary: 524288 layers { lstm { hidden: 1 } }", "replicas: 2");
  const int64_t embedding = 4 * (int64_t{1} << 19);
  const MemoryNeed need = large.OneWorker();
  const int64_t dense = 3 * embedding + 4 * 12;
  // The shards: embedding and softmax.w with its bias, or the other way round.
  EXPECT_EQ(need.parameters, (2 + 3) * kHugePage + dense);
  EXPECT_EQ(need.gradients, (2 + 3) * kHugePage);
  // The larger shard's sum.
  EXPECT_EQ(large.OneServer().activations, 3 * kHugePage);
}

TEST(StepMemoryTest, AQuarterMoreOfLargeArraysThatComeAndGo) {
  const Planned large = Small(
      "d_model: 4 vocabulary: 10 layers { moe { experts: 4 k: 2 hidden: 100000 groups: 2 "
      "gating: GATING_NOISY_TOP_K } }");
  // hidden and dhidden, [12, 100000] of each group: 3 pages each, and once more at the end.
  const int64_t pages = 2 * 2 * 2 * 3;
  const int64_t small = 2 * (4 * 12 * 4) + 4 * 5 * 24 + 2 * 2 * (4 * 12 * 4);
  EXPECT_EQ(large.ExpertServer().activations, pages * kHugePage * 5 / 4 + Heap(small));
}

TEST(StepMemoryTest, OfEveryMemberOfACluster) {
  const Planned small = Small();
  const std::vector<std::string> servers = {"server/a", "server/b"};
  const v1::Placement placement = MakePlacement(small.plan, servers);
  const auto replicas = AssignReplicas(2, {"worker/a", "worker/b"});
  const MemoryNeeds needs = ComputeMemoryNeeds(
      small.job, small.plan, placement, replicas,
      {{"server/a", {.threads = 1}}, {"server/b", {}}, {"server/c", {}}}, /*training=*/true);
  EXPECT_EQ(needs.size(), 5u);
  EXPECT_EQ(needs.at("server/a").parameters + needs.at("server/b").parameters,
            small.OneServer().parameters);
  EXPECT_EQ(needs.at("server/c").total(), kProgram);
  EXPECT_EQ(needs.at("worker/b").total(), small.OneWorker().total());
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
