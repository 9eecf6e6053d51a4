// A training step made up for tests: what every replica sends to a server that hosts all
// groups of one MoE layer, and the conversation that a worker holds about it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/base/moments.h"
#include "common/job/model_plan.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/expert.pb.h"
#include "proto/moe/v1/job.pb.h"
#include "server/reply_sink.h"

namespace moe::testing {

// Layer 1 is an MoE of 6 experts in 2 groups, d_model 5; 3 replicas, 2 waves. optimizer:
// fields of Optimizer beside the schedule; hidden: the experts' hidden layers.
v1::Job MadeJob(const std::string& optimizer = "adam {}",
                const std::string& hidden = "7");
// The same with a hierarchical MoE: of the experts of each group that is chosen, 2.
v1::Job MadeHierarchicalJob(const std::string& optimizer = "adam {}");
inline constexpr uint32_t kLayer = 1;
inline constexpr int32_t kWidth = 5;
inline constexpr int32_t kExperts = 6;
inline constexpr int32_t kGroups = 2;
inline constexpr int32_t kPerGroup = kExperts / kGroups;
// Never chosen in a MadeFrame.
inline constexpr int32_t kIdleExpert = 4;
inline constexpr uint32_t kReplicas = 3;
inline constexpr uint32_t kWaves = 2;

// What one replica has for one wave.
struct MadeFrame {
  struct Pair {
    uint32_t row = 0;
    uint32_t expert = 0;  // within the layer
    float gate = 0;
  };
  uint32_t tokens = 0;
  std::vector<uint32_t> token;     // [rows]
  std::vector<float> x;            // [rows, d]
  std::vector<float> dy;           // [rows, d]
  std::vector<Pair> pairs;         // by row, then expert
  std::vector<double> importance;  // [n]
  std::vector<double> load;        // [n]

  int64_t rows() const { return static_cast<int64_t>(token.size()); }
  std::vector<Pair> PairsOf(int32_t group) const;
};
// A function of its arguments. Rows differ from replica to replica; replica 1 has none in
// wave 1.
MadeFrame MakeFrame(uint64_t step, uint32_t replica, uint32_t wave);

// ---- as messages; generation 1
v1::ForwardFrame ForwardFrameOf(const MadeFrame& frame, uint32_t replica, v1::Mode mode);
v1::BackwardFrame BackwardFrameOf(const MadeFrame& frame, uint32_t replica);
v1::ExchangeRequest ForwardOf(uint64_t step, uint32_t wave,
                              const std::vector<uint32_t>& replicas,
                              v1::Mode mode = v1::MODE_TRAIN);
v1::ExchangeRequest BackwardOf(uint64_t step, uint32_t wave,
                               const std::vector<uint32_t>& replicas);
// Makes of forward or backward frames those of MadeHierarchicalJob: a group's rows are
// those that have an expert in it. moments: of backward frames.
v1::ExchangeRequest Hierarchical(v1::ExchangeRequest request,
                                 const BalanceMoments& moments = {});
v1::ExchangeRequest CloseOf(const ModelPlan& plan, uint64_t step,
                            const std::vector<uint32_t>& replicas, bool cut = false);
v1::ExchangeRequest ApplyOf(uint64_t step, double scale);
v1::ExchangeRequest PullOf(const std::vector<std::string>& shards, uint64_t version);
// The gradient of one dense shard by one replica.
std::vector<float> MakeGradient(uint64_t step, const std::string& shard, int64_t size,
                                uint32_t replica);

// The state of a running cluster of generation 1 with one server that hosts all shards,
// and worker/w0 with the replicas 0 and 1, worker/w1 with replica 2.
v1::ClusterState MadeState(const v1::Job& job);
inline const std::map<std::string, std::vector<uint32_t>>& Workers() {
  static const std::map<std::string, std::vector<uint32_t>> workers = {
      {"worker/w0", {0, 1}}, {"worker/w1", {2}}};
  return workers;
}

std::string Bytes(const std::vector<float>& values);
std::vector<float> Floats(const std::string& bytes);

// Keeps what a worker is sent.
class RecordingSink : public ReplySink {
 public:
  void Send(std::shared_ptr<const v1::ExchangeResponse> response) override;
  // The next response; aborts if none comes within 20 seconds.
  v1::ExchangeResponse Next();
  size_t waiting() const;

 private:
  mutable absl::Mutex mutex_;
  std::vector<std::shared_ptr<const v1::ExchangeResponse>> responses_;
};

}  // namespace moe::testing
