// The memory that a job takes from its members, computed from the job and its placement
// before anything is allocated: that of the CPU backend's arrays and of messages, at the
// moment of a step at which they are most. docs/design/memory.md has what is counted, and
// how it compares with what processes use.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/job/footprint.h"
#include "common/job/mixtures.h"
#include "common/job/model_plan.h"
#include "common/job/table_traffic.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

// Bytes, by what for.
struct MemoryNeed {
  // The program, its libraries and threads.
  int64_t program = 0;
  // Servers: of their shards. Workers: the dense ones, on the backend and as pulled.
  int64_t parameters = 0;
  // Servers.
  int64_t optimizer = 0;
  // Workers: the dense ones, of each replica.
  int64_t gradients = 0;
  // What the layers keep from the forward to the backward pass and to the end of the step,
  // and what they need meanwhile.
  int64_t activations = 0;
  // On their way, decoded, or kept for those who ask again.
  int64_t messages = 0;
  // Servers: copies for a checkpoint that is being written while steps go on.
  int64_t copies = 0;

  int64_t total() const {
    return program + parameters + optimizer + gradients + activations + messages + copies;
  }
};

// "3.4 GiB (parameters 1.1 GiB, optimizer state 2.2 GiB, messages 0.1 GiB)", without what
// is less than a hundredth.
std::string Describe(const MemoryNeed& need);

// That one replica carries from step to step.
int64_t CarriedStateBytes(const v1::Job& job);

// By member id.
using MemoryNeeds = std::map<std::string, MemoryNeed>;

// What changes the need of a server.
struct ServerLimits {
  // 0: not known, as many as there is work for.
  int threads = 0;
  // The experts' matrices and their optimizer state lie in a capacity tier, whose pages the
  // kernel takes back when memory is short.
  bool tier = false;
  // Of hidden activations; 0: all are kept.
  int64_t activation_bytes = 0;
  // Of copies for a checkpoint; as CopyBytes() takes it.
  int64_t copy_bytes = 0;
};

// What each member needs. The job is valid and has its vocabulary. servers: of every
// server, by member id. worker_threads: by member id; a worker that isn't there is taken to
// have as many as there is work for. training: else an evaluation.
MemoryNeeds ComputeMemoryNeeds(const v1::Job& job, const ModelPlan& plan,
                               const v1::Placement& placement,
                               std::span<const v1::ReplicaAssignment> replicas,
                               const std::map<std::string, ServerLimits>& servers,
                               const std::map<std::string, int>& worker_threads,
                               bool training);

// The same for one member at a time.
class StepMemory {
 public:
  // Both outlive this object.
  StepMemory(const v1::Job& job, const ModelPlan& plan, bool training)
      : job_(job), plan_(plan), training_(training), traffic_(job, training) {}

  // owned: of each worker its replicas, ascending.
  MemoryNeed OfServer(std::span<const ShardSpec> shards,
                      std::span<const std::vector<uint32_t>> owned,
                      const ServerLimits& limits) const;
  // score_servers: those with a part of the softmax's table. threads: 0: as many as there is
  // work for. copies: of each shard.
  MemoryNeed OfWorker(std::span<const uint32_t> owned, int64_t score_servers = 0,
                      int threads = 0, int copies = 1) const;

 private:
  // What is there at some moment of a step, beside parameters and gradients.
  struct Work {
    Footprint activations = {};
    int64_t messages = 0;

    int64_t total() const { return activations.size() + messages; }
    // Of what comes and goes within the step.
    Work with_holes() const {
      const Footprint without = activations.with_holes();
      const Footprint all = (activations + Footprint{.heap = messages}).with_holes();
      return {without, all.heap - without.heap};
    }
    Work operator+(const Work& other) const {
      return {activations + other.activations, messages + other.messages};
    }
  };
  // Of the groups of one mixture that a server has.
  struct MixtureWork {
    Work kept;         // of all waves, from the forward pass to the end of the step
    Footprint hidden;  // what may be computed again instead; of one group, all waves
    Work wave;         // in a wave's forward or backward pass
    // In an evaluation's, beside what a training step has in it: experts of a tier that no step
    // has touched yet, and hidden activations.
    Footprint untouched;
    Footprint close;  // of one group's activations, at the end of the step
  };
  // Of the shards of a kind.
  struct Sizes {
    Footprint parameters;  // of all, on the backend
    Footprint optimizer;   // of all
    int64_t floats = 0;    // bytes of all in messages
    int64_t largest = 0;   // of the largest
  };

  static const Work& Larger(const Work& a, const Work& b) {
    return a.total() < b.total() ? b : a;
  }
  // experts: whether what lies in a tier counts.
  Sizes SizesOf(std::span<const ShardSpec> shards, ShardKind kind,
                bool experts = true) const;
  MixtureWork WorkOf(const Mixture& mixture, int32_t groups, int threads) const;
  // T, the rows of a wave of one replica.
  int64_t Rows() const;
  // Nodes of the tree over replicas that a worker's gradients come as.
  int64_t Nodes(std::span<const uint32_t> owned) const;
  // The end of a step on a server: sums of the rows of these table shards over all replicas, and
  // of one shard at a time, with clipping of all, what its update takes.
  Footprint RowSums(std::span<const ShardSpec> shards, bool clips) const;
  // Of a ScoreRequest, at most.
  double ScoreTokens(int64_t replicas) const;
  // Scores under way: on a server from all workers; on the worker of so many replicas.
  Work ServerScores(std::span<const ShardSpec> shards,
                    std::span<const std::vector<uint32_t>> owned) const;
  int64_t WorkerScores(int64_t replicas, int64_t servers) const;
  // The rows of tables that a worker works with, and their gradients.
  Footprint WorkerRows(std::span<const uint32_t> owned) const;
  // Logits of a sampled softmax, of one replica while it is computed.
  Footprint CandidateLogits() const;
  // Of one replica, without these.
  Footprint Activations() const;
  Footprint OfLstm(const v1::Lstm& lstm) const;
  // Without its mixtures.
  Footprint OfRecurrentMoe(const v1::RecurrentMoe& layer) const;
  // The worker's half of a mixture. kept: calls of each wave of which all is kept that the backward
  // pass needs.
  Footprint OfMixture(const Mixture& mixture, int32_t kept) const;

  const v1::Job& job_;
  const ModelPlan& plan_;
  const bool training_;
  const TableTraffic traffic_;
};

}  // namespace moe
