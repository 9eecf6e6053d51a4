// One pass over a micro-batch of every wave for all replicas of this worker: the local segments of
// the models and the exchange with the expert servers between them.
//
// Frames of a wave leave as soon as its segment is done, so that servers compute wave w while this
// worker computes wave w + 1.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/expert_client.h"
#include "common/base/moments.h"
#include "common/job/mixtures.h"
#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/job.pb.h"
#include "worker/models/parameters.h"
#include "worker/models/replica_model.h"
#include "worker/trainer/activity_clock.h"
#include "worker/trainer/micro_batch.h"
#include "worker/trainer/table_pass.h"

namespace moe {

struct PassResult {
  // One for each owned replica, ascending.
  std::vector<v1::ReplicaLoss> losses;
  // One for each mixture: tokens of the owned replicas that chose each expert, the sums of their
  // gates (of an evaluation; zeros in training, whose totals() have them), and the number of tokens
  // that chose none.
  struct Balance {
    uint32_t layer = 0;
    std::string part;  // of Mixture
    std::vector<uint64_t> assigned;
    std::vector<double> importance;
    uint64_t unrouted = 0;
  };
  std::vector<Balance> balance;

  // Adds another pass of the same replicas.
  void Add(const PassResult& other);
};

class StepRunner {
 public:
  // Everything passed must outlive the runner. tables: used if the job has tables. owned: replicas,
  // ascending.
  StepRunner(Backend& backend, const v1::Job& job, const ModelPlan& plan,
             const DenseParameters& parameters, ExpertClient& experts,
             TableClient& tables, ActivityClock& clock, std::vector<uint32_t> owned);

  const std::vector<uint32_t>& owned() const { return owned_; }
  // The model of the i-th owned replica.
  ReplicaModel& model(size_t i) { return *models_[i]; }

  // Forward over all waves with the parameters of `version`. step: in evaluation the number of the
  // batch. batches: [owned * waves], replica-major. In training the totals of each mixture over
  // the whole step are known afterwards. A loss that isn't finite is an error that names replica,
  // wave and layer.
  absl::StatusOr<PassResult> Forward(uint64_t step, PassMode mode, uint64_t version,
                                     int64_t tokens_of_step,
                                     std::span<const MicroBatch> batches);
  // Backward over all waves; the models' gradients() hold the result.
  absl::Status Backward();

  // What the gates chose in the last Forward; hierarchical: both gates together, and `gate`
  // is their product in an evaluation, and 0 in training.
  struct Choice {
    int32_t mixture = 0;  // index into mixtures()
    uint32_t replica = 0;
    int32_t wave = 0;
    int32_t token = 0;  // row of the micro-batch
    int32_t expert = 0;
    float gate = 0;
  };
  // By mixture, call, replica, wave, token and expert; hierarchical: by group before token.
  void ForEachChoice(const std::function<void(const Choice&)>& fn) const;

  const std::vector<Mixture>& mixtures() const { return mixtures_; }
  // Totals of each mixture over the last training step, all replicas.
  const std::vector<BalanceTotals>& totals() const { return totals_; }

 private:
  // An exchange is named by the segment before it.
  v1::FrameId FrameOf(int segment, int32_t wave) const;
  absl::Status SendForward(int segment, int32_t wave);
  // Leaves what the experts gave in rows_. totals: as of ExpertClient.
  absl::Status AwaitRows(int segment, int32_t wave, BalanceTotals* totals);
  absl::Status AwaitForward(int segment, int32_t wave);
  absl::Status Recompute(int segment, int32_t wave);
  absl::Status SendBackward(int segment, int32_t wave);
  absl::Status AwaitBackward(int segment, int32_t wave);
  absl::Status CheckFinite() const;
  absl::Status FormBalanceGradients();
  int32_t MixtureOf(int segment) const {
    return models_.front()->exchange(segment).mixture;
  }
  bool Hierarchical(int segment) const {
    return mixtures_[MixtureOf(segment)].moe.k_primary() > 0;
  }
  // Tokens of a call.
  int64_t TokensOf(const Mixture& mixture) const;
  const RoutingPlan& PlanOf(int segment, int32_t wave, size_t owned) const;
  PassResult Summarize(std::span<const MicroBatch> batches) const;

  Backend& backend_;
  const v1::Job& job_;
  ExpertClient& experts_;
  ActivityClock& clock_;
  const std::vector<uint32_t> owned_;
  const int32_t waves_;
  const std::vector<Mixture> mixtures_;
  std::vector<std::unique_ptr<ReplicaModel>> models_;
  // Of a job with tables.
  std::optional<TablePass> tables_;

  uint64_t step_ = 0;
  PassMode mode_ = PassMode::kTrain;
  // [segment][wave * owned + i]
  std::vector<std::vector<std::unique_ptr<RoutingPlan>>> plans_;
  // [segment][wave * owned + i]; hierarchical only.
  std::vector<std::vector<ChosenPairs>> chosen_;
  std::vector<BalanceTotals> totals_;  // [mixture]
  // [mixture][n] By the Importance and Load of what the worker's gate chooses among.
  std::vector<std::vector<double>> importance_gradient_;
  std::vector<std::vector<double>> load_gradient_;
  // Host buffers of one exchange, for each owned replica.
  std::vector<std::vector<float>> rows_;
  std::vector<std::vector<float>> gates_;
};

}  // namespace moe
