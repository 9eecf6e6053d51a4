// Messages of 1 MiB of rows from a worker's client to a server and back, over the wire that they use
// between processes, four in flight. The expert has one hidden unit, so that next to nothing is computed.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/cluster_client.h"
#include "client/expert_client.h"
#include "client/routing_plan.h"
#include "common/job/job_file.h"
#include "common/job/model_plan.h"
#include "glog/logging.h"
#include "server/expert_server.h"
#include "tests/bench/bench_backend.h"
#include "tests/bench/kept_fixture.h"
#include "tests/bench/lone_state.h"
#include "tests/server/fake_member.h"

namespace moe {
namespace {

// Rows of 512 floats: 1 MiB.
constexpr int32_t kRows = 512, kWidth = 512;
constexpr int32_t kWaves = 64, kInFlight = 4;
constexpr double kMessageBytes = 4.0 * kRows * kWidth;

constexpr char kJob[] = R"(
  name: "messages" seed: 1
  model {
    d_model: 512 vocabulary: 16
    layers { moe { experts: 1 k: 1 hidden: 1 groups: 1 gating: GATING_NOISY_TOP_K } }
  }
  optimizer { sgd {} schedule { base_rate: 1 constant {} } }
  training { replicas: 1 waves: 64 lanes: 64 unroll: 512 steps: 1 }
)";

class Wire {
 public:
  Wire() : x_(int64_t{kRows} * kWidth, 0.5f), y_(x_.size()) {
    const absl::StatusOr<v1::Job> job = ParseJob(kJob, "messages_bench");
    CHECK(job.ok()) << job.status();
    ExpertServer::Options server;
    server.name = "s0";
    server.threads = Cores();
    server.join = [this](const Member::Options& member) {
      return std::make_unique<testing::FakeMember>(&cluster_, member);
    };
    absl::StatusOr<std::unique_ptr<ExpertServer>> started =
        ExpertServer::Start(std::move(server));
    CHECK(started.ok()) << started.status();
    server_ = *std::move(started);
    const v1::ClusterState state = LoneState(*job, server_->address());
    cluster_.SetState(state);
    cluster_.AwaitReady(state.generation());

    ClusterClient::Options connect;
    connect.member = kLoneWorker;
    connect.incarnation = 1;
    connect.owned_replicas = {0};
    absl::StatusOr<std::unique_ptr<ClusterClient>> client =
        ClusterClient::Connect(state, MakeModelPlan(*job), std::move(connect));
    CHECK(client.ok()) << client.status();
    client_ = *std::move(client);

    std::vector<int32_t> offset(kRows + 1);
    std::iota(offset.begin(), offset.end(), 0);
    const std::vector<int32_t> expert(kRows, 0);
    const std::vector<float> gate(kRows, 1);
    plan_ = std::make_unique<RoutingPlan>(client_->experts().layout({}), offset, expert,
                                          gate);
  }

  // kWaves messages there and back.
  void Exchange() {
    for (int32_t w = 0; w < kInFlight; ++w) Send(w);
    for (int32_t w = 0; w < kWaves; ++w) {
      const ForwardResult result = {.replica = 0, .plan = plan_.get(), .y = y_.data()};
      const absl::Status status =
          client_->experts().AwaitForward(IdOf(w), {{result}}, nullptr);
      CHECK(status.ok()) << status;
      if (w + kInFlight < kWaves) Send(w + kInFlight);
    }
    ++batch_;
  }

 private:
  v1::FrameId IdOf(int32_t wave) const {
    v1::FrameId id;
    id.set_step(batch_);
    id.set_wave(wave);
    id.set_mode(v1::MODE_EVALUATE);
    return id;
  }
  void Send(int32_t wave) {
    ForwardCall call;
    call.plan = plan_.get();
    call.x = x_.data();
    const absl::Status status = client_->experts().SendForward(IdOf(wave), {{call}});
    CHECK(status.ok()) << status;
  }

  testing::FakeCluster cluster_;
  std::unique_ptr<ExpertServer> server_;
  std::unique_ptr<ClusterClient> client_;
  std::unique_ptr<RoutingPlan> plan_;
  const std::vector<float> x_;
  std::vector<float> y_;
  uint64_t batch_ = 0;
};

void Rows(benchmark::State& state) {
  static KeptFixture<Wire, int> kept;
  Wire& wire = kept.Get(0, [] { return std::make_unique<Wire>(); });
  for (auto _ : state) wire.Exchange();
  SetRate(state, "GB/s", kWaves * kMessageBytes);
}
BENCHMARK(Rows)->UseRealTime()->MinTime(0.3);

}  // namespace
}  // namespace moe
