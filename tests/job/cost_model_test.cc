#include "common/job/cost_model.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/job/placement.h"
#include "tests/job/job_of.h"

namespace moe {
namespace {

// An LSTM, and 4 experts in 2 groups, to all of which every token goes.
constexpr char kModel[] =
    "d_model: 64 vocabulary: 100 layers { lstm { hidden: 64 } } layers { moe { experts: "
    "4 hidden: 128 groups: 2 gating: GATING_SOFTMAX } }";
constexpr double kFast = 1e18;

// Beside what is given nothing takes any time.
ClusterSpeed Speed() {
  const HostSpeed host = {
      .flops = kFast, .memory = kFast, .messages = kFast, .nic = kFast};
  return {.server = host, .worker = host};
}

struct Planned {
  explicit Planned(const std::string& training, int server_count = 1,
                   const std::string& model = kModel)
      : job(JobWith(model, training)), plan(MakeModelPlan(job)) {
    std::vector<std::string> ids;
    for (int i = 0; i < server_count; ++i) ids.push_back("server/s" + std::to_string(i));
    auto by_server = ShardsByServer(plan, MakePlacement(plan, ids));
    for (const std::string& id : ids) servers.push_back(by_server[id]);
    for (uint32_t r = 0; r < static_cast<uint32_t>(job.training().replicas()); ++r) {
      workers.push_back({r});
    }
  }
  StepCost Cost(const ClusterSpeed& speed) const {
    return ComputeStepCost(job, plan, servers, workers, speed);
  }
  // What messages and reports take in any case.
  double Fixed() const { return Cost(Speed()).seconds; }

  v1::Job job;
  ModelPlan plan;
  std::vector<std::vector<ShardSpec>> servers;
  std::vector<std::vector<uint32_t>> workers;
};

TEST(CostModelTest, LatencyIsPaidForEachExchange) {
  ClusterSpeed speed = Speed();
  speed.latency = 1;
  // There and back: pull, forward, backward, close, and the report.
  const Planned one("replicas: 1");
  EXPECT_NEAR(one.Cost(speed).seconds - one.Fixed(), 2 * 5, 1e-9);
  EXPECT_NEAR(one.Cost(speed).path[Cause::kLatency], 2 * 5, 1e-9);
  // Waves are under way together.
  const Planned waves("replicas: 1 waves: 2");
  EXPECT_NEAR(waves.Cost(speed).path[Cause::kLatency], 2 * 5, 1e-9);
  // With clipping the norm is one exchange more.
  Planned clips("replicas: 1");
  clips.job.mutable_optimizer()->set_clip_norm(1);
  EXPECT_NEAR(clips.Cost(speed).path[Cause::kLatency], 2 * 6, 1e-9);
}

TEST(CostModelTest, ASlowNetworkTakesTheTimeOfTheBytes) {
  ClusterSpeed speed = Speed();
  speed.server.nic = 1e6;
  speed.worker.nic = 1e6;
  const Planned planned("replicas: 1 lanes: 64");
  const StepCost cost = planned.Cost(speed);
  const StepBytes& bytes = cost.servers[0].bytes;
  EXPECT_EQ(bytes.to_servers(), cost.workers[0].bytes.to_servers());
  // One wave: nothing is sent while anything comes. Packets of 1,538 bytes hold 1,448 of them.
  const double all = bytes.to_servers() + bytes.to_workers();
  EXPECT_NEAR((cost.seconds - planned.Fixed()) / (all / 1e6 * 1538 / 1448), 1, 1e-6);
  EXPECT_GT(cost.path[Cause::kNetwork] / cost.seconds, 0.99);
  EXPECT_NEAR(cost.servers[0].network,
              std::max(bytes.to_servers(), bytes.to_workers()) / 1e6 * 1538 / 1448, 1e-9);

  // Of two waves one comes while another goes.
  const Planned waves("replicas: 1 lanes: 64 waves: 2");
  const StepCost overlapped = waves.Cost(speed);
  EXPECT_LT(overlapped.seconds, 0.97 * cost.seconds);

  // Two servers have two networks; now the worker's is the limit.
  const Planned two("replicas: 1 lanes: 64", 2);
  ClusterSpeed fast_worker = speed;
  fast_worker.worker.nic = kFast;
  EXPECT_LT(two.Cost(fast_worker).seconds, 0.8 * cost.seconds);
  EXPECT_GT(two.Cost(speed).seconds, 0.99 * cost.seconds);
}

TEST(CostModelTest, ServersShareTheExperts) {
  ClusterSpeed speed = Speed();
  speed.server.flops = 1e9;
  const Planned one("replicas: 2");
  const Planned two("replicas: 2", 2);
  const double all = one.Cost(speed).seconds - one.Fixed();
  EXPECT_NEAR((two.Cost(speed).seconds - two.Fixed()) / all, 0.5, 0.02);
  EXPECT_GT(one.Cost(speed).path[Cause::kServerArithmetic], 0.9 * all);
  speed.server.flops = 2e9;
  EXPECT_NEAR((one.Cost(speed).seconds - one.Fixed()) / all, 0.5, 1e-6);
}

TEST(CostModelTest, WavesOverlapWhatBothSidesCompute) {
  // Both sides take about as long.
  ClusterSpeed speed = Speed();
  speed.server.flops = 1e9;
  speed.worker.flops = 1e9;
  const Planned one("replicas: 1 lanes: 64");
  const Planned two("replicas: 1 lanes: 64 waves: 2");
  const StepCost serial = one.Cost(speed);
  const StepCost waves = two.Cost(speed);
  EXPECT_NEAR(serial.seconds - one.Fixed(),
              serial.servers[0].computing + serial.workers[0].computing, 1e-9);
  EXPECT_LT(waves.seconds, 0.85 * serial.seconds);
  EXPECT_GT(waves.seconds, waves.servers[0].computing);
}

TEST(CostModelTest, WithOneThreadMessagesHoldUpTheWork) {
  ClusterSpeed speed = Speed();
  speed.worker.flops = 1e9;
  speed.worker.messages = 1e6;
  speed.server.messages = 1e6;
  const Planned planned("replicas: 1 lanes: 64 waves: 4");
  speed.threads = 1;
  const double one = planned.Cost(speed).seconds;
  speed.threads = 2;
  EXPECT_LT(planned.Cost(speed).seconds, one);
}

TEST(CostModelTest, ThreadsWithoutAReplicaAreNoHelp) {
  ClusterSpeed speed = Speed();
  speed.worker.flops = 1e9;
  Planned planned("replicas: 3");
  planned.workers = {{0, 1, 2}};
  const double all = planned.Cost(speed).workers[0].computing;
  // Of two threads one has two replicas: the time of four.
  speed.threads = 2;
  const double two = planned.Cost(speed).workers[0].computing;
  EXPECT_GT(two, 1.2 * all);
  EXPECT_LT(two, 1.34 * all);
}

TEST(CostModelTest, WhatIsComputedAgainTakesTime) {
  ClusterSpeed speed = Speed();
  speed.server.flops = 1e9;
  const Planned planned("replicas: 1 lanes: 64");
  const double kept = planned.Cost(speed).seconds;
  const double again = ComputeStepCost(planned.job, planned.plan, planned.servers,
                                       planned.workers, speed, /*activation_bytes=*/1)
                           .seconds;
  // The hidden layer twice more and its gradient once, beside six products.
  EXPECT_GT(again, 1.2 * kept);
  EXPECT_LT(again, 1.7 * kept);
  EXPECT_EQ(ComputeStepCost(planned.job, planned.plan, planned.servers, planned.workers,
                            speed, int64_t{1} << 40)
                .seconds,
            kept);
}

TEST(CostModelTest, EveryKindOfLayerIsPlayedThrough) {
  ClusterSpeed speed = Speed();
  speed.worker.flops = 1e9;
  speed.server.flops = 1e9;
  const std::string recurrent =
      "d_model: 4 vocabulary: 1000 tables { shards: 2 candidates: 50 } layers { "
      "recurrent_moe { hidden: 4 input { experts: 2 groups: 1 gating: GATING_SOFTMAX } "
      "recurrent { experts: 2 groups: 1 gating: GATING_SOFTMAX } ";
  const Planned kept("replicas: 2 unroll: 6", 1, recurrent + "} }");
  const Planned again("replicas: 2 unroll: 6", 1, recurrent + "kept_states: 2 } }");
  EXPECT_GT(again.Cost(speed).seconds, kept.Cost(speed).seconds);
  ClusterSpeed latency = Speed();
  latency.latency = 1;
  // Pulls of parameters and of rows, an input and 6 time steps both ways, close and report.
  EXPECT_NEAR(kept.Cost(latency).path[Cause::kLatency], 2 * (2 + 2 * 7 + 2), 1e-9);
  const Planned hierarchical(
      "replicas: 2", 2,
      "d_model: 4 vocabulary: 10 layers { lstm { hidden: 8 projection: 4 } } layers { "
      "moe "
      "{ experts: 8 k: 2 k_primary: 2 hidden: 8 hidden: 8 groups: 4 gating: "
      "GATING_NOISY_TOP_K parameters: PARAMETERS_BFLOAT16 } }");
  EXPECT_GT(hierarchical.Cost(speed).path[Cause::kServerArithmetic], 0);
}

}  // namespace
}  // namespace moe
