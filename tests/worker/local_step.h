// Whole training steps in the test's own process: every replica's ReplicaModel, and the
// experts and tables beside them instead of on servers.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/job/mixtures.h"
#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "common/tensor/replica_tree.h"
#include "proto/moe/v1/job.pb.h"
#include "tests/worker/local_experts.h"
#include "tests/worker/local_secondary_gates.h"
#include "tests/worker/local_tables.h"
#include "worker/models/parameters.h"
#include "worker/models/replica_model.h"
#include "worker/trainer/activity_clock.h"
#include "worker/trainer/table_pass.h"

namespace moe::testing {

// Parameters, gradients or moments by the names of common/job/model_plan.h.
using NamedTensors = std::map<std::string, std::vector<float>>;

// One micro-batch, time-major.
struct LocalBatch {
  std::vector<int32_t> input;
  std::vector<int32_t> target;
};

// Values for tests: uniform, 0.5 about 0 or the tensor's offset, gates included; a function
// of seed and name.
NamedTensors RandomParameters(const v1::Job& job, uint64_t seed);
// Random words for every replica and wave of one step: [replica][wave].
std::vector<std::vector<LocalBatch>> RandomBatches(const v1::Job& job, uint64_t seed);

class LocalModel {
 public:
  // parallel: replicas compute at the same time.
  LocalModel(Backend& backend, const v1::Job& job, bool parallel = false);

  void SetParameters(const NamedTensors& parameters);
  NamedTensors GetParameters();

  struct StepResult {
    double loss_sum = 0;      // sum of -ln p(target)
    double balance_loss = 0;  // all L_importance and L_load; 0 in evaluation
    double loss = 0;          // loss_sum / tokens + balance_loss
    NamedTensors gradients;   // summed over replicas; training only
    struct Choices {
      std::vector<int32_t> offset;  // [T + 1]
      std::vector<int32_t> expert;  // [p]
    };
    // [exchange][replica][wave]
    std::vector<std::vector<std::vector<Choices>>> choices;
  };
  // Forward and backward. batches: [replica][wave].
  StepResult Train(uint64_t step, const std::vector<std::vector<LocalBatch>>& batches);
  StepResult Evaluate(const std::vector<std::vector<LocalBatch>>& batches);

  // One update of every tensor with the gradients of the last Train; each tensor's
  // moments are `m` and `v` before and after. Experts without rows and rows of tables that the
  // step doesn't name stay as they are, and tensors with a rate of their own
  // (common/job/model_plan.h) take a step of SGD. step.count is that of every row, too.
  void Update(const OptimizerStep& step, NamedTensors* m, NamedTensors* v);

  ReplicaModel& replica(int r) { return *replicas_[r]; }
  const std::vector<Mixture>& mixtures() const { return mixtures_; }
  // Of the mixture after a segment.
  const Mixture& mixture(int segment) const {
    return mixtures_[replicas_[0]->exchange(segment).mixture];
  }

 private:
  StepResult Forward(uint64_t step, PassMode mode,
                     const std::vector<std::vector<LocalBatch>>& batches);
  void Backward(StepResult* result);
  void Recompute(int segment, int32_t wave);
  void ForEachReplica(const std::function<void(int64_t)>& fn);
  std::vector<float> SumOverReplicas(const std::string& name);
  // Between the rows of a table and its shards' tensors.
  void SetTable(Table table);
  void SumRowsOverReplicas(Table table);
  void UpdateTables(const OptimizerStep& step, NamedTensors* m, NamedTensors* v);
  void UpdateTensor(const OptimizerStep& step, const TensorSpec& tensor, float* value,
                    NamedTensors* m, NamedTensors* v);
  Tensor Upload(const TensorSpec& spec, const std::vector<float>& values) const;

  Backend& backend_;
  const v1::Job job_;
  const bool parallel_;
  const ModelPlan plan_;
  const DenseParameters parameters_;
  std::vector<std::unique_ptr<ReplicaModel>> replicas_;
  // By mixture; gates: null if it is flat.
  const std::vector<Mixture> mixtures_;
  std::vector<LocalExperts> experts_;
  std::vector<std::unique_ptr<LocalSecondaryGates>> gates_;
  NamedTensors gradients_;
  // [exchange][wave][replica] of the last pass.
  std::vector<std::vector<std::vector<std::vector<float>>>> outputs_;
  // With tables.
  NamedTensors of_tables_;  // parameters
  LocalTables tables_;
  ActivityClock clock_;
  std::unique_ptr<TablePass> table_pass_;
  std::map<Table, std::vector<int32_t>> touched_;  // words of the last Train, ascending
};

}  // namespace moe::testing
