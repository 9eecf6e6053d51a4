#include "server/coordinator/run_record.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moe {

namespace {

// Evaluations for the next coordinator. Workers are never as far apart.
constexpr int kKept = 16;

}  // namespace

void RunRecord::Begin(uint64_t generation,
                      const std::vector<v1::ReplicaAssignment>& replicas,
                      uint64_t start_step, uint64_t words_per_epoch, absl::Time now) {
  replicas_ = &replicas;
  kept_.Clear();
  kept_.set_generation(generation);
  steps_taken_ = start_step;
  unreported_step_ = start_step;
  requested_cut_.reset();
  wished_cut_.reset();
  requested_handover_.reset();
  last_cut_ = 0;
  progress_.Begin(start_step, words_per_epoch, now);
  NoteSign(now);
}

void RunRecord::Restore(const v1::StoredEvaluations& evaluations) {
  for (const v1::StoredEvaluation& evaluation : evaluations.evaluations()) {
    *kept_.add_evaluations() = evaluation;
    balance_.assign(evaluation.balance().begin(), evaluation.balance().end());
    progress_.Restore(evaluation.split(), evaluation.perplexity());
  }
}

std::optional<double> RunRecord::KeptPerplexity(uint64_t step, v1::Split split) const {
  for (const v1::StoredEvaluation& evaluation : kept_.evaluations()) {
    if (evaluation.step() == step && evaluation.split() == split) {
      return evaluation.perplexity();
    }
  }
  return std::nullopt;
}

absl::Status RunRecord::AddStep(const v1::ReportStepRequest& request, absl::Time now) {
  if (request.step() < steps_taken_) return absl::OkStatus();
  unreported_step_ = std::max(unreported_step_, request.step() + 1);
  if (requested_cut_.has_value() && request.step() >= *requested_cut_ &&
      request.last_cut() <= *requested_cut_) {
    // A worker that couldn't await its answers didn't know of it.
    requested_cut_ = unreported_step_ + 1;
  }
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
  if (kept_.evaluations().empty()) balance_ = step.balance;
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

void RunRecord::RequestHandover() {
  // Each worker reads the answer to its report of that step.
  if (!requested_handover_.has_value()) requested_handover_ = unreported_step_;
}

void RunRecord::CutBegun(uint64_t steps) {
  last_cut_ = steps;
  requested_cut_.reset();
  if (wished_cut_.has_value() && *wished_cut_ <= steps) wished_cut_.reset();
}

absl::StatusOr<const ReplicaJoin*> RunRecord::AddEvaluation(
    const v1::ReportEvaluationRequest& request, absl::Time now) {
  ReplicaJoin& join = evaluations_.Join(request.step(), request.split(), *replicas_, now);
  const bool was_complete = join.complete();
  RETURN_IF_ERROR(join.Add(request.member(), request.losses(), request.balance()));
  if (join.complete() && !was_complete) {
    balance_ = join.EvaluationBalance();
    v1::StoredEvaluation* const kept = kept_.add_evaluations();
    kept->set_step(request.step());
    kept->set_split(request.split());
    kept->set_perplexity(join.perplexity());
    kept->mutable_balance()->Assign(balance_.begin(), balance_.end());
    if (kept_.evaluations_size() > kKept) {
      // That of the last cut may still be needed for its manifest.
      const bool of_cut = kept_.evaluations(0).step() == last_cut_;
      kept_.mutable_evaluations()->DeleteSubrange(of_cut ? 1 : 0, 1);
    }
    progress_.Evaluation(request.step(), request.split(), join.perplexity(), balance_,
                         now);
  }
  return &join;
}

void RunRecord::End() {
  steps_.clear();
  evaluations_ = Evaluations();
  kept_.Clear();
  replicas_ = nullptr;
  last_sign_ = absl::InfiniteFuture();
}

void RunRecord::Excuse(absl::Duration pause) {
  last_sign_ += pause;
  evaluations_.Excuse(pause);
}

}  // namespace moe
