// What the workers of a run report, joined over the replicas: steps and evaluations, and
// from both how balanced the experts are.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/state.pb.h"
#include "proto/moe/v1/status.pb.h"
#include "server/coordinator/evaluations.h"
#include "server/coordinator/progress.h"
#include "server/coordinator/replica_join.h"

namespace moe {

// Not thread-safe.
class RunRecord {
 public:
  // progress, which gets all that is complete, outlives this object.
  explicit RunRecord(ProgressReporter& progress) : progress_(progress) {}

  // The workers begin. replicas: ascending; outlives this object. words_per_epoch: of the
  // training text.
  void Begin(uint64_t generation, const std::vector<v1::ReplicaAssignment>& replicas,
             uint64_t start_step, uint64_t words_per_epoch, absl::Time now);
  // They have stopped, and what they reported since is void: the next reports come after another
  // Begin. Ends the life of every join.
  void End();

  // After Begin: what a coordinator before knew of this generation.
  void Restore(const v1::StoredEvaluations& evaluations);
  // The last ones that are complete, for Restore.
  const v1::StoredEvaluations& evaluations() const { return kept_; }
  // Of an evaluation that was complete before; of others none.
  std::optional<double> KeptPerplexity(uint64_t step, v1::Split split) const;

  // ABORTED with the cause if the step shows that the job can't go on. A repetition
  // changes nothing.
  absl::Status AddStep(const v1::ReportStepRequest& request, absl::Time now);
  // Somebody wants a checkpoint of what is now, or later; returns of how many steps it is at least.
  uint64_t WishCut();
  // Until a cut begins that does.
  bool wishes_cut() const { return wished_cut_.has_value(); }
  // Asks for a cut in the close of a step that no worker has begun; the same one until a cut begins, or
  // another if a worker didn't learn of it in time.
  void RequestCut();
  std::optional<uint64_t> requested_cut() const { return requested_cut_; }
  // A cut has begun in the close after which so many steps are taken; what is asked for is asked for
  // anew when that one is committed.
  void CutBegun(uint64_t steps);
  // Asks the workers to stop after a step; the same one until they may go on.
  void RequestHandover();
  std::optional<uint64_t> requested_handover() const { return requested_handover_; }
  void CancelHandover() { requested_handover_.reset(); }
  // The evaluation that the report is of, which stays valid until End.
  absl::StatusOr<const ReplicaJoin*> AddEvaluation(
      const v1::ReportEvaluationRequest& request, absl::Time now);
  // None unless all workers have reported it.
  uint64_t steps_taken() const { return steps_taken_; }
  // Of the last evaluation, or of the last step if there was none.
  const std::vector<v1::BalanceStatus>& balance() const { return balance_; }

  // Somebody has reported, or was seen to work.
  void NoteSign(absl::Time now) { last_sign_ = now; }
  // How long that was ago; negative between runs.
  absl::Duration Silence(absl::Time now) const { return now - last_sign_; }
  // As in Evaluations.
  std::string Overdue(absl::Time now, absl::Duration timeout) const {
    return evaluations_.Overdue(now, timeout);
  }
  // Time that doesn't count.
  void Excuse(absl::Duration pause);

 private:
  ProgressReporter& progress_;
  const std::vector<v1::ReplicaAssignment>* replicas_ = nullptr;
  std::map<uint64_t, ReplicaJoin> steps_;  // incomplete ones
  uint64_t steps_taken_ = 0;
  // The first step that no worker has reported.
  uint64_t unreported_step_ = 0;
  // Of so many steps at least.
  std::optional<uint64_t> wished_cut_;
  // In the close of this step.
  std::optional<uint64_t> requested_cut_;
  std::optional<uint64_t> requested_handover_;
  // Steps at the last cut.
  uint64_t last_cut_ = 0;
  Evaluations evaluations_;
  v1::StoredEvaluations kept_;
  std::vector<v1::BalanceStatus> balance_;
  absl::Time last_sign_ = absl::InfiniteFuture();
};

}  // namespace moe
