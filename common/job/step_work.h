// What the members of a job compute in a training step, and how long it takes them: the model of
// cost for everything but the network (docs/design/cost.md).
//
// Experts get equally many rows, as in expert_traffic.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/job/host_speed.h"
#include "common/job/mixtures.h"
#include "common/job/model_plan.h"
#include "common/job/table_traffic.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

// Of the hidden activations of a server with these shards, what it can't keep in so many bytes and
// computes again; 0 bytes: it keeps all.
double RecomputedShare(const v1::Job& job, std::span<const ShardSpec> shards,
                       int64_t activation_bytes);

class ServerWork {
 public:
  // The job is valid and has its vocabulary. recomputed: RecomputedShare(). All outlive this object but the numbers.
  ServerWork(const v1::Job& job, const ModelPlan& plan, const HostSpeed& speed,
             double recomputed);

  // One call of the mixture, all replicas: the experts of so many groups, and their gates.
  Effort Forward(const Mixture& mixture, int32_t groups) const;
  Effort Backward(const Mixture& mixture, int32_t groups) const;
  // The end of a step: sums over the replicas; square sums, if the job clips; the optimizer.
  // nodes: of the replica tree, that all workers push of each shard together.
  Effort Join(std::span<const ShardSpec> shards, int64_t nodes) const;
  Effort SquareSums(std::span<const ShardSpec> shards) const;
  Effort Apply(std::span<const ShardSpec> shards) const;

 private:
  // What an expert of a mixture that has any gets in a call, or in a step.
  struct Rows {
    double experts = 0;  // with rows, of a group
    double each = 0;     // rows of each of them
    double pairs = 0;    // of a group
    double group_rows = 0;
  };
  Rows RowsOf(const Mixture& mixture, double calls) const;
  // All matrices of one expert, forward or backward; without the last one, or the first: what is
  // computed again.
  Effort Experts(const Mixture& mixture, const Rows& rows, bool all) const;
  // The gradients of a group's experts.
  Effort ExpertGradients(const Mixture& mixture, const Rows& rows) const;
  Effort GateGradients(const Mixture& mixture, const Rows& rows) const;
  // The optimizer on a tensor, or on so many of its elements.
  Effort Update(const TensorSpec& tensor, double elements) const;

  const v1::Job& job_;
  const ModelPlan& plan_;
  const HostSpeed speed_;
  const double recomputed_;
  const TableTraffic tables_;
};

// Of one worker. A step has a segment more than calls of mixtures in a wave: what is computed before,
// between and after them (worker/models/replica_model.h).
class WorkerWork {
 public:
  // threads: 0: as many as there is work for.
  WorkerWork(const v1::Job& job, const ModelPlan& plan, const HostSpeed& speed,
             int64_t replicas, int threads);

  struct Segment {
    Effort forward;
    Effort backward;
  };
  // Of one wave of all its replicas.
  const std::vector<Segment>& segments() const { return segments_; }
  // Another run of one time step of the recurrent mixture (RecurrentMoe.kept_states).
  Effort Repeat(const Mixture& mixture) const;
  // Before the first segment and after the last: parameters and rows come in; gradients go out.
  Effort Begin() const;
  Effort Close(int64_t nodes) const;

 private:
  // Of one replica.
  Effort Product(double rows, double cols, double inner, double weight_bytes = 0) const {
    return ProductEffort(speed_, rows, cols, inner, weight_bytes);
  }
  Effort Elements(double elements, double cost) const {
    return ElementEffort(speed_, elements, cost);
  }
  Effort Finish(float dropout) const;
  Segment OfLstm(const v1::Lstm& lstm) const;
  Segment OfGate(const Mixture& mixture) const;
  // With its gradients.
  Effort OfSoftmax() const;
  void AddLayer(const v1::Layer& layer, std::span<const Mixture> mixtures);
  double DenseFloats() const;
  // Rows of tables, in floats.
  double TableFloats() const;

  const v1::Job& job_;
  const ModelPlan& plan_;
  const HostSpeed speed_;
  const int64_t replicas_;
  // By how much longer it takes than if all threads worked all the time.
  double uneven_ = 1;
  double tokens_ = 0;  // T: of a replica's wave
  double lanes_ = 0;   // of a replica's wave
  std::vector<Segment> segments_;
};

}  // namespace moe
