#include "worker/trainer/trainer.h"

#include <span>
#include <utility>

#include "absl/memory/memory.h"
#include "common/base/moments.h"
#include "common/base/status_macros.h"
#include "common/job/learning_rate.h"
#include "common/job/mixtures.h"
#include "glog/logging.h"

namespace moe {
namespace {

uint64_t TotalSteps(const v1::Training& training, int64_t steps_per_epoch) {
  return training.steps() > 0 ? training.steps() : training.epochs() * steps_per_epoch;
}

LaneShape ShapeOf(const v1::Training& training) {
  LaneShape shape;
  shape.replicas = training.replicas();
  shape.lanes = training.lanes();
  shape.waves = training.waves();
  shape.unroll = training.unroll();
  return shape;
}

int64_t TokensPerStep(const v1::Training& training) {
  return ShapeOf(training).all_lanes() * training.unroll();
}

}  // namespace

TextSplit ToTextSplit(v1::Split split) {
  switch (split) {
    case v1::SPLIT_VALIDATION:
      return TextSplit::kValidation;
    case v1::SPLIT_TEST:
      return TextSplit::kTest;
    default:
      return TextSplit::kTrain;
  }
}

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(
    Backend& backend, const v1::Job& job, const ModelPlan& plan, const TokenDataset& data,
    ClusterClient& cluster, Member& member, ActivityClock& clock,
    std::vector<uint32_t> owned) {
  ASSIGN_OR_RETURN(
      TrainingBatches batches,
      TrainingBatches::Create(data.tokens(TextSplit::kTrain), ShapeOf(job.training())));
  return absl::WrapUnique(new Trainer(backend, job, plan, data, cluster, member, clock,
                                      std::move(owned), std::move(batches)));
}

Trainer::Trainer(Backend& backend, const v1::Job& job, const ModelPlan& plan,
                 const TokenDataset& data, ClusterClient& cluster, Member& member,
                 ActivityClock& clock, std::vector<uint32_t> owned,
                 TrainingBatches batches)
    : job_(job),
      plan_(plan),
      data_(data),
      cluster_(cluster),
      member_(member),
      clock_(clock),
      training_(std::move(batches)),
      total_steps_(TotalSteps(job.training(), training_.steps_per_epoch())),
      parameters_(backend, plan),
      runner_(backend, job, plan, parameters_, cluster.experts(), cluster.tables(), clock,
              std::move(owned)) {
  for (const Array<float>& shard : parameters_.shards())
    pull_buffer_.emplace_back(shard.size());
  const int32_t rows = ShapeOf(job.training()).rows();
  micro_batches_.assign(runner_.owned().size() * job.training().waves(),
                        {std::vector<int32_t>(rows), std::vector<int32_t>(rows)});
}

absl::Status Trainer::Train(uint64_t start) {
  RETURN_IF_ERROR(RestoreStates(start));
  const uint64_t cut_every = job_.checkpointing().every_steps();
  const uint64_t evaluate_every = job_.training().evaluate_every();
  for (uint64_t step = start; step < total_steps_; ++step) {
    const uint64_t taken = step + 1;
    const bool wanted = taken == total_steps_ ||
                        (cut_every > 0 && taken % cut_every == 0) ||
                        requested_cut_ == step;
    // One at a time: what servers copy for it, and what is lost with a member, stay bounded.
    if (wanted) RETURN_IF_ERROR(AwaitCut());
    ASSIGN_OR_RETURN(const bool cut, Step(step, wanted));
    const bool evaluate = cut || (evaluate_every > 0 && taken % evaluate_every == 0);
    if (evaluate && Has(v1::SPLIT_VALIDATION)) {
      RETURN_IF_ERROR(Evaluate(v1::SPLIT_VALIDATION, taken));
    }
    if (requested_handover_ == step && taken < total_steps_) {
      RETURN_IF_ERROR(member_.AwaitHandover(taken));
    }
  }
  if (Has(v1::SPLIT_TEST)) RETURN_IF_ERROR(Evaluate(v1::SPLIT_TEST, total_steps_));
  // The job ends with its last checkpoint.
  return AwaitCut();
}

absl::Status Trainer::AwaitCut() {
  if (!last_cut_.has_value()) return absl::OkStatus();
  RETURN_IF_ERROR(member_.AwaitCheckpoint(*last_cut_).status());
  last_cut_.reset();
  cut_under_way_ = false;
  return absl::OkStatus();
}

bool Trainer::Has(v1::Split split) const {
  return !data_.tokens(ToTextSplit(split)).empty();
}

absl::Status Trainer::RestoreStates(uint64_t version) {
  for (size_t i = 0; i < runner_.owned().size(); ++i) {
    const uint32_t replica = runner_.owned()[i];
    ASSIGN_OR_RETURN(std::string state,
                     cluster_.parameters().PullReplicaState(version, replica));
    if (state.empty()) {
      runner_.model(i).ResetState();
    } else {
      RETURN_IF_ERROR(runner_.model(i).LoadState(state));
    }
  }
  return absl::OkStatus();
}

absl::Status Trainer::Pull(uint64_t version) {
  if (pulled_ == version) return absl::OkStatus();
  ActivityScope scope(clock_, Activity::kMoving);
  std::vector<std::span<float>> spans(pull_buffer_.begin(), pull_buffer_.end());
  RETURN_IF_ERROR(cluster_.parameters().PullDense(version, spans));
  for (size_t s = 0; s < pull_buffer_.size(); ++s)
    parameters_.shards()[s].Upload(pull_buffer_[s]);
  pulled_ = version;
  return absl::OkStatus();
}

absl::StatusOr<bool> Trainer::Step(uint64_t step, bool cut) {
  RETURN_IF_ERROR(Pull(step));
  const int64_t step_of_epoch = step % training_.steps_per_epoch();
  if (step_of_epoch == 0) {
    // The lanes start over with the text.
    for (size_t i = 0; i < runner_.owned().size(); ++i) runner_.model(i).ResetState();
  }
  Fill(training_, step_of_epoch);
  ASSIGN_OR_RETURN(PassResult pass,
                   runner_.Forward(step, PassMode::kTrain, /*version=*/step,
                                   TokensPerStep(job_.training()), micro_batches_));
  RETURN_IF_ERROR(runner_.Backward());
  ActivityScope scope(clock_, Activity::kMoving);
  ASSIGN_OR_RETURN(StepClosed closed, cluster_.parameters().Close(MakeClose(step, cut)));
  member_.SetTimes(clock_.Times());
  if (closed.cut) {
    last_cut_ = step + 1;
    cut_under_way_ = true;
  }
  ASSIGN_OR_RETURN(const std::optional<v1::ReportStepResponse> reported,
                   member_.ReportStep(Report(step, pass, closed)));
  if (reported.has_value()) {
    requested_cut_.reset();
    if (reported->cut()) requested_cut_ = reported->cut_step();
    requested_handover_.reset();
    if (reported->handover()) requested_handover_ = reported->handover_step();
    cut_under_way_ = reported->cut_under_way();
  }
  return closed.cut;
}

template <typename Batches>
void Trainer::Fill(const Batches& batches, int64_t batch) {
  const int32_t waves = job_.training().waves();
  for (size_t i = 0; i < runner_.owned().size(); ++i) {
    for (int32_t wave = 0; wave < waves; ++wave) {
      MicroBatch& micro_batch = micro_batches_[i * waves + wave];
      batches.Fill(batch, runner_.owned()[i], wave, micro_batch.input,
                   micro_batch.target);
    }
  }
}

StepClose Trainer::MakeClose(uint64_t step, bool cut) {
  StepClose close;
  close.step = step;
  close.learning_rate = RateOf(step);
  close.cut = cut;
  close.cut_under_way = cut_under_way_;
  for (size_t i = 0; i < runner_.owned().size(); ++i) {
    const uint32_t replica = runner_.owned()[i];
    auto& gradients = close.gradients[replica];
    for (const Array<float>& shard : runner_.model(i).gradients().shards()) {
      gradients.emplace_back(shard.size());
      shard.Download(gradients.back());
    }
    close.replica_states[replica] = runner_.model(i).SaveState();
    if (job_.model().has_tables()) {
      close.embedding_gradients[replica] = runner_.model(i).EmbeddingGradients();
      close.softmax_gradients[replica] = runner_.model(i).SoftmaxGradients();
    }
  }
  return close;
}

double Trainer::RateOf(uint64_t step) const {
  return LearningRate(job_.optimizer().schedule(), step, training_.steps_per_epoch());
}

v1::ReportStepRequest Trainer::Report(uint64_t step, const PassResult& pass,
                                      const StepClosed& closed) const {
  v1::ReportStepRequest report;
  report.set_step(step);
  report.set_total_steps(total_steps_);
  report.set_learning_rate(RateOf(step));
  report.set_gradient_norm(closed.gradient_norm);
  report.set_last_cut(last_cut_.value_or(0));
  for (const v1::ReplicaLoss& loss : pass.losses) *report.add_losses() = loss;
  for (size_t m = 0; m < pass.balance.size(); ++m) {
    v1::LayerBalance* balance = report.add_balance();
    balance->set_layer(pass.balance[m].layer);
    balance->set_mixture(pass.balance[m].part);
    const BalanceTotals& totals = runner_.totals()[m];
    balance->set_cv_importance(CoefficientOfVariation(totals.moments.importance));
    balance->set_cv_load(CoefficientOfVariation(totals.moments.load));
    balance->mutable_assigned()->Add(pass.balance[m].assigned.begin(),
                                     pass.balance[m].assigned.end());
    balance->set_unrouted(pass.balance[m].unrouted);
  }
  return report;
}

absl::Status Trainer::Evaluate(v1::Split split, uint64_t version, TopContexts* contexts) {
  const std::span<const int32_t> text = data_.tokens(ToTextSplit(split));
  RETURN_IF_ERROR(Pull(version));
  ASSIGN_OR_RETURN(EvaluationBatches batches,
                   EvaluationBatches::Create(text, ShapeOf(job_.training())));

  std::vector<std::string> carried;
  for (size_t i = 0; i < runner_.owned().size(); ++i) {
    carried.push_back(runner_.model(i).SaveState());
    runner_.model(i).ResetState();
  }

  PassResult sum;
  for (int64_t b = 0; b < batches.batches(); ++b) {
    Fill(batches, b);
    ASSIGN_OR_RETURN(PassResult pass,
                     runner_.Forward(evaluation_batches_++, PassMode::kEvaluate, version,
                                     TokensPerStep(job_.training()), micro_batches_));
    if (contexts != nullptr) {
      runner_.ForEachChoice([&](const StepRunner::Choice& choice) {
        const Mixture& mixture = runner_.mixtures()[choice.mixture];
        contexts->Add(mixture.id.layer, mixture.part, choice.expert, choice.gate,
                      batches.Position(b, choice.replica, choice.wave, choice.token));
      });
    }
    if (b == 0) {
      sum = std::move(pass);
    } else {
      sum.Add(pass);
    }
  }

  for (size_t i = 0; i < runner_.owned().size(); ++i) {
    RETURN_IF_ERROR(runner_.model(i).LoadState(carried[i]));
  }

  v1::ReportEvaluationRequest report;
  report.set_step(version);
  report.set_split(split);
  for (const v1::ReplicaLoss& loss : sum.losses) *report.add_losses() = loss;
  for (const PassResult::Balance& layer : sum.balance) {
    v1::LayerBalance* balance = report.add_balance();
    balance->set_layer(layer.layer);
    balance->set_mixture(layer.part);
    balance->mutable_assigned()->Add(layer.assigned.begin(), layer.assigned.end());
    balance->mutable_importance()->Add(layer.importance.begin(), layer.importance.end());
    balance->set_unrouted(layer.unrouted);
  }
  return member_.ReportEvaluation(std::move(report));
}

}  // namespace moe
