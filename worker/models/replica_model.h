// One replica's language model: embedding, layers, softmax, forward and backward
// together, wave by wave. The experts are elsewhere: the model is cut into segments at
// its MoE layers, and the caller carries rows between them.
//
// Segment 0 runs from the embedding to the gate of the first MoE layer, segment i from
// the output of MoE layer i-1 to the gate of MoE layer i, the last one to the softmax and
// the loss. A model without MoE layers has one segment.
//
// Order of a training step:
//   BeginStep(s, kTrain)
//   for each segment, for each wave: [SetMoeOutput] Forward
//     (after the last segment: the losses, and the softmax's gradient)
//   for each segment from the last, for each wave: [SetMoeGradient] Backward
//   then gradients() holds dL/dparameter of this replica, waves added in order.
// In evaluation only the forward half, with mode kEvaluate: no noise, no dropout.
//
// Rows of a micro-batch are time-major: row = t * lanes_of_wave + lane.
//
// Not thread-safe; different replicas may run at the same time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/job.pb.h"
#include "worker/layers/pass.h"  // IWYU pragma: export
#include "worker/models/parameters.h"
#include "worker/models/step_tables.h"

namespace moe {

// What the gate of one MoE layer chose for one micro-batch of T tokens: p pairs of token
// and expert (worker/gating/gate.h); in a hierarchical MoE this is the primary gate, and
// its experts are the groups. Host memory, owned by the model, valid until the next
// Forward of the same segment and wave.
struct MoeCall {
  int32_t layer = 0;                   // index into Model.layers
  std::span<const int32_t> offset;     // [T + 1] of each token's pairs
  std::span<const int32_t> expert;     // [p] ascending within a token
  std::span<const float> gate;         // [p]
  std::span<const float> x;            // [T, d_model]
  std::span<const double> importance;  // [n]
  std::span<const double> load;        // [n]
};

class ReplicaModel {
 public:
  // parameters must outlive the model and may change between steps only. lanes: of the
  // replica; divided evenly over the waves.
  ReplicaModel(Backend& backend, const v1::Job& job, const ModelPlan& plan,
               const DenseParameters& parameters, uint32_t replica, int32_t lanes,
               int32_t waves, int32_t unroll);
  ~ReplicaModel();

  int segments() const;
  // Index into Model.layers of the MoE layer after segment s; s < segments() - 1.
  int32_t moe_layer(int segment) const;

  // The LSTM state that is carried from step to step, over all waves.
  void ResetState();
  std::string SaveState() const;
  // INVALID_ARGUMENT if the blob isn't of this model's sizes.
  absl::Status LoadState(const std::string& state);

  // The part of the loss that each token's mean is taken over: tokens of the whole step,
  // all replicas and waves.
  // tables: the rows that the pass touches, of a job with tables (null without); they
  // outlive the pass.
  void BeginStep(uint64_t step, PassMode mode, int64_t tokens_of_step,
                 const StepTables* tables = nullptr);

  // input, target: host, [unroll * lanes / waves], time-major; read by segment 0, which
  // keeps a copy. Every input is a word of the vocabulary. target -1: padding, counts
  // nowhere; in evaluation such a row is routed to no expert; in training there are none.
  void Forward(int segment, int32_t wave, std::span<const int32_t> input,
               std::span<const int32_t> target);
  // After Forward(segment, wave), segment < segments() - 1.
  const MoeCall& moe_call(int segment, int32_t wave) const;
  // The MoE layer's combined output, [T, d_model], before the sigmoid; before
  // Forward(segment + 1).
  void SetMoeOutput(int segment, int32_t wave, std::span<const float> y);

  // Sum of -ln p(target) over the wave's rows; after the last segment's Forward.
  double loss_sum(int32_t wave) const;
  // In the evaluation of a job with tables the softmax is the servers': its input [T, d],
  // and where the result goes.
  std::span<const float> softmax_input(int32_t wave) const;
  void SetLossSum(int32_t wave, double loss_sum);

  // segment from the last to 0. For segment < segments() - 1 SetMoeGradient comes first.
  void Backward(int segment, int32_t wave);
  // dL/dy of the MoE layer's output [T, d_model]; after Backward(segment + 1, wave). Host
  // memory, valid until the next Backward of the same segment and wave.
  std::span<const float> moe_output_gradient(int segment, int32_t wave) const;
  // dx: [T, d_model] through the experts; dgate: [p] <dL/dy, E_i(x)>; dimportance and
  // dload: [n] gradients of the balancing losses with respect to the step's Importance
  // and Load. Hierarchical: dx also through the secondary gates, dgate dL/dG_primary with
  // the importance loss in it, so that dimportance is 0, and dload dL/dLoad_primary.
  void SetMoeGradient(int segment, int32_t wave, std::span<const float> dx,
                      std::span<const float> dgate, std::span<const double> dimportance,
                      std::span<const double> dload);

  // Sums over waves in order; zeroed by BeginStep of a training step.
  DenseParameters& gradients();
  // With tables: of the rows that the step touched, by word (step_tables.h).
  SparseRows EmbeddingGradients() const;
  SparseRows SoftmaxGradients() const;

  // The first layer whose output in this wave has a NaN or an infinity ("layer1 (moe)
  // output"); empty if there is none. For error messages.
  std::string FirstNonFinite(int32_t wave) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe
