// The life of a worker within a running job: optimizer steps, evaluations, cuts.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cluster_client.h"
#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "common/membership/member.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/job.pb.h"
#include "worker/data/lane_batches.h"
#include "worker/data/token_dataset.h"
#include "worker/models/parameters.h"
#include "worker/trainer/activity_clock.h"
#include "worker/trainer/step_runner.h"
#include "worker/trainer/top_contexts.h"

namespace moe {

TextSplit ToTextSplit(v1::Split split);

class Trainer {
 public:
  // Everything passed must outlive the trainer. owned: this worker's replicas, ascending.
  // INVALID_ARGUMENT if the text is too short for the job.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(
      Backend& backend, const v1::Job& job, const ModelPlan& plan,
      const TokenDataset& data, ClusterClient& cluster, Member& member,
      ActivityClock& clock, std::vector<uint32_t> owned);

  // Trains from optimizer step `start` to the job's last, with the cuts and evaluations that the
  // job asks for, and evaluates the test text at the end. Splits that are empty are passed over.
  absl::Status Train(uint64_t start);
  // Evaluates one split with the parameters of `version` and reports it. OUT_OF_RANGE if the split
  // has fewer than two words. contexts, unless null, gets what the gates chose.
  absl::Status Evaluate(v1::Split split, uint64_t version,
                        TopContexts* contexts = nullptr);

 private:
  Trainer(Backend& backend, const v1::Job& job, const ModelPlan& plan,
          const TokenDataset& data, ClusterClient& cluster, Member& member,
          ActivityClock& clock, std::vector<uint32_t> owned, TrainingBatches batches);

  absl::Status RestoreStates(uint64_t version);
  absl::Status Pull(uint64_t version);
  // cut: whether this worker wants one. Returns whether it was taken.
  absl::StatusOr<bool> Step(uint64_t step, bool cut);
  // Waits until the last cut, if there was one, is committed.
  absl::Status AwaitCut();
  // Fills micro_batches_ from one batch of the text.
  template <typename Batches>
  void Fill(const Batches& batches, int64_t batch);
  v1::ReportStepRequest Report(uint64_t step, const PassResult& pass,
                               const StepClosed& closed) const;
  StepClose MakeClose(uint64_t step, bool cut);
  double RateOf(uint64_t step) const;
  bool Has(v1::Split split) const;

  const v1::Job& job_;
  const ModelPlan& plan_;
  const TokenDataset& data_;
  ClusterClient& cluster_;
  Member& member_;
  ActivityClock& clock_;
  const TrainingBatches training_;
  const uint64_t total_steps_;
  DenseParameters parameters_;
  StepRunner runner_;

  // Version of parameters_.
  std::optional<uint64_t> pulled_;
  // The step of which the coordinator wants a cut.
  std::optional<uint64_t> requested_cut_;
  // After which it may change over to other members.
  std::optional<uint64_t> requested_handover_;
  // Steps taken at the last cut, unless it is known to be committed.
  std::optional<uint64_t> last_cut_;
  // As far as is known: a cut was taken that isn't committed.
  bool cut_under_way_ = false;
  std::vector<std::vector<float>> pull_buffer_;
  // Numbers evaluation frames; the same on every worker, since all evaluate the same batches.
  uint64_t evaluation_batches_ = 0;
  std::vector<MicroBatch> micro_batches_;  // [owned * waves]
};

}  // namespace moe
