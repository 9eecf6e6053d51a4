#include "server/coordinator/run_record.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moe {

void RunRecord::Begin(const std::vector<v1::ReplicaAssignment>& replicas,
                      uint64_t start_step, uint64_t words_per_epoch, absl::Time now) {
  replicas_ = &replicas;
  steps_taken_ = start_step;
  unreported_step_ = start_step;
  requested_cut_.reset();
  wished_cut_.reset();
  progress_.Begin(start_step, words_per_epoch, now);
  NoteSign(now);
}

absl::Status RunRecord::AddStep(const v1::ReportStepRequest& request, absl::Time now) {
  if (request.step() < steps_taken_) return absl::OkStatus();
  unreported_step_ = std::max(unreported_step_, request.step() + 1);
  ReplicaJoin& join = steps_.try_emplace(request.step(), *replicas_).first->second;
  RETURN_IF_ERROR(join.Add(request.member(), request.losses(), request.balance()));
  if (!join.complete()) return absl::OkStatus();

  CompletedStep step;
  step.step = request.step() + 1;
  step.total_steps = request.total_steps();
  step.loss_sum = join.loss_sum();
  step.tokens = join.tokens();
  step.learning_rate = request.learning_rate();
  step.balance = join.StepBalance();
  if (!std::isfinite(step.loss_sum)) {
    // Counted from 0, as workers count.
    return absl::AbortedError(absl::StrCat("training diverged: the loss of step ",
                                           request.step(), " isn't finite"));
  }
  progress_.Step(step, now);
  if (evaluations_.empty()) balance_ = step.balance;
  steps_taken_ = step.step;
  steps_.erase(steps_.begin(), steps_.lower_bound(steps_taken_));
  return absl::OkStatus();
}

uint64_t RunRecord::WishCut() {
  // Any cut that is still to begin has the steps that are reported, and one more.
  wished_cut_ = unreported_step_ + 1;
  return *wished_cut_;
}

void RunRecord::RequestCut() {
  // The first unreported step may have begun; its report brings the answer.
  if (!requested_cut_.has_value()) requested_cut_ = unreported_step_ + 1;
}

void RunRecord::CutBegun(uint64_t steps) {
  if (requested_cut_.has_value() && *requested_cut_ < steps) requested_cut_.reset();
  if (wished_cut_.has_value() && *wished_cut_ <= steps) wished_cut_.reset();
}

absl::StatusOr<const ReplicaJoin*> RunRecord::AddEvaluation(
    const v1::ReportEvaluationRequest& request, absl::Time now) {
  ReplicaJoin& join = evaluations_.Join(request.step(), request.split(), *replicas_, now);
  const bool was_complete = join.complete();
  RETURN_IF_ERROR(join.Add(request.member(), request.losses(), request.balance()));
  if (join.complete() && !was_complete) {
    balance_ = join.EvaluationBalance();
    progress_.Evaluation(request.step(), request.split(), join.perplexity(), balance_,
                         now);
  }
  return &join;
}

void RunRecord::End() {
  steps_.clear();
  evaluations_ = Evaluations();
  replicas_ = nullptr;
  last_sign_ = absl::InfiniteFuture();
}

void RunRecord::Excuse(absl::Duration pause) {
  last_sign_ += pause;
  evaluations_.Excuse(pause);
}

}  // namespace moe
