// One replica's language model: embedding, layers, softmax, forward and backward
// together, wave by wave. The experts are elsewhere: the model is cut into segments at
// the calls of its mixtures, and the caller carries rows between them.
//
// Segment 0 runs from the embedding to the gate of the first exchange with the experts, segment i
// from the output of exchange i-1 to the gate of exchange i, the last one to the softmax and
// the loss. A model without experts has one segment. A MoE layer has one exchange; a recurrent
// one has one for its input, and one for each time step.
//
// Order of a training step:
//   BeginStep(s, kTrain)
//   for each segment, for each wave: [SetMoeOutput] Forward
//     (after the last segment: the losses, and the softmax's gradient)
//   for each segment from the last, for each wave: [SetMoeGradient] [Recompute] Backward
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
#include "worker/layers/pass.h"      // IWYU pragma: export
#include "worker/models/moe_call.h"  // IWYU pragma: export
#include "worker/models/parameters.h"
#include "worker/models/step_tables.h"

namespace moe {

class ReplicaModel {
 public:
  // parameters must outlive the model and may change between steps only. lanes: of the
  // replica; divided evenly over the waves.
  ReplicaModel(Backend& backend, const v1::Job& job, const ModelPlan& plan,
               const DenseParameters& parameters, uint32_t replica, int32_t lanes,
               int32_t waves, int32_t unroll);
  ~ReplicaModel();

  int segments() const;
  // The exchange after a segment, which is not the last one.
  const MoeExchange& exchange(int segment) const;

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
  // After Forward(segment, wave), segment < segments() - 1; valid until the next Forward of the
  // same segment and wave.
  const MoeCall& moe_call(int segment, int32_t wave) const;
  // The mixture's combined output, [tokens of the call, out], before the sigmoid; before
  // Forward(segment + 1).
  void SetMoeOutput(int segment, int32_t wave, std::span<const float> y);

  // Sum of -ln p(target) over the wave's rows; after the last segment's Forward.
  double loss_sum(int32_t wave) const;
  // In the evaluation of a job with tables the softmax is the servers': its input [T, d],
  // and where the result goes.
  std::span<const float> softmax_input(int32_t wave) const;
  void SetLossSum(int32_t wave, double loss_sum);

  // segment from the last to 0. For segment < segments() - 1 SetMoeGradient comes first, then
  // Recompute for each of recomputed(segment), in order.
  void Backward(int segment, int32_t wave);
  // The segments before the exchanges that Recompute wants the output of once more: of layers with
  // kept_states in the job. The same for all waves and replicas.
  std::vector<int> recomputed(int segment) const;
  // y: as given to SetMoeOutput for the i-th of recomputed(segment).
  void Recompute(int segment, int32_t wave, size_t i, std::span<const float> y);
  // dL/dy of what the exchange before the segment of the last Backward gave, [tokens of the call,
  // out]. Host memory, valid until the next Backward.
  std::span<const float> moe_output_gradient() const;
  // dx: [tokens of the call, in] through the experts; dgate: [p] <dL/dy, E_i(x)>; dimportance and
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
