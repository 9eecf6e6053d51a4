// One group's experts: x W_1, ReLU(x W_1) W_2, or deeper, on the combined batch of all replicas.
//
// A batch is expert-major; the rows of an expert are in (replica, token) order, and at
// the end of a step in (wave, replica, token) order, so that nothing depends on who sent
// what and when. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/expert.pb.h"
#include "proto/moe/v1/job.pb.h"
#include "proto/moe/v1/parameter.pb.h"
#include "server/activation_budget.h"
#include "server/capacity_tier.h"
#include "server/frames.h"
#include "server/parameter_block.h"
#include "server/secondary_gate.h"
#include "server/shard.h"
#include "server/wave_rows.h"

namespace moe {

class ExpertShard : public Shard {
 public:
  // What the shards of a server share; outlives them. Null: no limits.
  struct Host {
    CapacityTier* tier = nullptr;
    ActivationBudget* activations = nullptr;
  };

  ExpertShard(Backend& backend, const ModelPlan& plan, const ShardSpec& spec,
              const v1::Job& job, Host host);
  ExpertShard(Backend& backend, const ModelPlan& plan, const ShardSpec& spec,
              const v1::Job& job)
      : ExpertShard(backend, plan, spec, job, Host()) {}
  ~ExpertShard() override;

  // One result for each replica. pairs: [R]. MODE_TRAIN: waves in ascending order; experts that
  // have rows get memory, and RESOURCE_EXHAUSTED says that the tier has none for them: the step
  // can't go on then, and its shards are as they were before it.
  absl::StatusOr<std::vector<v1::GroupOutput>> Forward(
      v1::Mode mode, uint32_t wave, const WaveRows& rows,
      std::span<const GroupPairs* const> pairs);
  // The same in a hierarchical MoE, where the group's own gate chooses the pairs. chosen:
  // [R].
  absl::StatusOr<std::vector<v1::GroupOutput>> Forward(
      v1::Mode mode, uint64_t step, uint32_t wave, const WaveRows& rows,
      std::span<const GroupRows* const> chosen);
  // rows.dy is set; after the wave's Forward, in a hierarchical MoE after the step's last.
  // moments: null in a flat MoE.
  std::vector<v1::GroupGradient> Backward(uint32_t wave, const WaveRows& rows,
                                          const BalanceMoments* moments);

  // ---- the end of a step; waves: all of the step
  // Of each tensor of the experts that have rows, and of their gate.
  void AppendSquareSums(std::span<const WaveRows> waves,
                        std::vector<v1::TensorSquareSum>* sums);
  // Updates the experts that have rows, and their gate; forgets the step.
  void Apply(std::span<const WaveRows> waves, double rate, double scale);

  const ShardSpec& spec() const override { return spec_; }
  void Initialize() override { parameters_.Initialize(); }
  absl::Status Restore(const SafetensorsFile& file) override {
    return parameters_.Restore(file);
  }
  std::shared_ptr<ShardCut> BeginCut(CopyBudget& copies) override {
    return parameters_.BeginCut(copies);
  }
  std::vector<v1::TensorDigest> Digests() const override { return parameters_.Digests(); }
  std::vector<v1::UntouchedTensors> Untouched() const override {
    return parameters_.Untouched();
  }
  void FillStatus(v1::ShardStatus* status) const override;
  int64_t pieces() const override { return parameters_.tensors(); }
  uint64_t PieceVersion(int64_t piece) const override {
    return static_cast<uint64_t>(parameters_.count(static_cast<int>(piece)));
  }
  std::string Piece(int64_t piece) const override {
    return parameters_.Content(static_cast<int>(piece));
  }
  absl::Status SetPiece(int64_t piece, uint64_t version,
                        std::string_view content) override;

 private:
  // One wave's batch, and what is kept of it until the end of the step.
  struct WaveBatch {
    // Expert-major: row of WaveRows and gate of each row of the batch. begin: [b + 1].
    std::vector<int64_t> begin;
    std::vector<int32_t> source;
    Array<float> gate;
    // By pair, replicas in order: its row in the batch.
    std::vector<int32_t> position;
    // [q + 1] first pair of each distinct row of WaveRows.
    std::vector<int32_t> offset;
    // [R + 1] first pair and first distinct row of each replica.
    std::vector<int64_t> replica_pair;
    std::vector<int64_t> replica_row;
    // False: hidden and dhidden are computed again where they are needed.
    bool kept = true;
    std::vector<Tensor> hidden;   // [p, h_i]
    std::vector<Tensor> dhidden;  // [p, h_i]; from the backward pass on

    int64_t pairs() const { return static_cast<int64_t>(position.size()); }
    int64_t rows() const { return static_cast<int64_t>(offset.size()) - 1; }
  };
  // The batch of the whole step.
  struct StepBatch {
    // Experts with rows, and their numbers in the group.
    std::vector<ExpertRows> experts;
    std::vector<int32_t> expert;
    Tensor x;                     // [p, in]
    std::vector<Tensor> hidden;   // [p, h_i]
    std::vector<Tensor> dhidden;  // [p, h_i]
    Tensor gated_dy;              // [p, out]
  };

  // Where the parameters of each tensor of the shard are; one of the two is null.
  struct Values {
    std::vector<float*> w;
    std::vector<Bfloat16*> w16;
  };
  // The experts' part of Forward.
  absl::StatusOr<std::vector<v1::GroupOutput>> RunExperts(
      v1::Mode mode, const WaveRows& rows, std::span<const GroupPairs* const> pairs);
  // Of a batch whose `hidden` are set: keeps them, or frees them if the budget has no room.
  void KeepOrFree(WaveBatch* batch);
  // Bytes of a batch's hidden and dhidden.
  int64_t HiddenBytes(const WaveBatch& batch) const;
  // What the forward pass, and with it the backward pass, made of the wave's rows.
  std::vector<Tensor> HiddenAgain(const WaveRows& rows, const WaveBatch& batch) const;
  std::vector<Tensor> DhiddenAgain(const WaveRows& rows, const WaveBatch& batch,
                                   const std::vector<Tensor>& hidden) const;
  // Gives memory to the experts that have rows.
  absl::Status Touch(const WaveBatch& batch);
  // Before they are needed: begins to read those that aren't in RAM.
  void Prefetch(const WaveBatch& batch) const;
  void PrefetchExpert(int32_t expert) const;
  // Whether all of its matrices have memory.
  bool HasMemory(int32_t expert) const;
  // The forward pass of an evaluation, which gives no expert memory. The initial values of those
  // without are made for one expert at a time on each thread.
  void Evaluate(const WaveBatch& batch, ConstMatrix x, std::span<const Matrix> hidden,
                Matrix y) const;
  // Of one expert with its initial values.
  void EvaluateUntouched(ExpertRows of_expert, int32_t expert, ConstMatrix x,
                         std::span<const Matrix> hidden, Matrix y) const;
  // pair_gate: gates by pair.
  WaveBatch Join(const WaveRows& rows, std::span<const GroupPairs* const> pairs,
                 std::vector<float>* pair_gate);
  // Matrices of an expert.
  int matrices() const { return static_cast<int>(hidden_.size()) + 1; }
  // The shard's tensor that is the expert's first matrix; the others follow.
  int FirstMatrix(int32_t expert) const {
    return spec_.gate_tensors + expert * matrices();
  }
  // The expert's part of pointers by tensor.
  template <typename T>
  std::span<T* const> OfExpert(const std::vector<T*>& pointers, int32_t expert) const {
    return std::span(pointers).subspan(FirstMatrix(expert), matrices());
  }
  // [rows, h_i] of each hidden layer.
  std::vector<Tensor> HiddenTensors(int64_t rows) const;
  // values: outlive the result.
  ExpertRows RowsOf(int32_t expert, int64_t begin, int64_t rows,
                    const Values& values) const;
  std::vector<ExpertRows> ExpertsOf(const WaveBatch& batch, const Values& values) const;
  template <typename Fn>
  void ForExpertsWithRows(const WaveBatch& batch, const Fn& fn) const;
  void AddTotals(uint32_t wave, std::span<const GroupPairs* const> pairs);
  const StepBatch& Gather(std::span<const WaveRows> waves);
  void ForgetStep();

  Backend& backend_;
  const ShardSpec spec_;
  const std::string mixture_;          // of the status
  const int64_t in_;                   // numbers in a row
  const int64_t out_;                  // and in what an expert makes of it
  const std::vector<int64_t> hidden_;  // width of each hidden layer
  const bool bfloat16_;                // the experts' matrices
  ActivationBudget* const activations_;
  ParameterBlock parameters_;
  // Parameters and Adam's moments of each tensor, as ParameterBlock has them.
  Values values_;
  std::vector<float*> m_;
  std::vector<float*> v_;
  std::optional<SecondaryGate> gate_;  // hierarchical

  // The step in progress.
  std::vector<WaveBatch> waves_;
  std::vector<double> importance_;  // [b] totals over the waves so far
  std::vector<double> load_;
  std::optional<StepBatch> step_;

  // [b] of the last step, and since this object exists.
  std::vector<uint64_t> last_rows_;
  std::vector<uint64_t> total_rows_;
};

}  // namespace moe
