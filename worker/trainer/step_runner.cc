#include "worker/trainer/step_runner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "worker/gating/cv_squared.h"

namespace moe {
void PassResult::Add(const PassResult& other) {
  for (size_t i = 0; i < losses.size(); ++i) {
    losses[i].set_loss_sum(losses[i].loss_sum() + other.losses[i].loss_sum());
    losses[i].set_tokens(losses[i].tokens() + other.losses[i].tokens());
  }
  for (size_t m = 0; m < balance.size(); ++m) {
    balance[m].unrouted += other.balance[m].unrouted;
    for (size_t e = 0; e < balance[m].assigned.size(); ++e) {
      balance[m].assigned[e] += other.balance[m].assigned[e];
      balance[m].importance[e] += other.balance[m].importance[e];
    }
  }
}

StepRunner::StepRunner(Backend& backend, const v1::Job& job, const ModelPlan& plan,
                       const DenseParameters& parameters, ExpertClient& experts,
                       TableClient& tables, ActivityClock& clock,
                       std::vector<uint32_t> owned)
    : backend_(backend),
      job_(job),
      experts_(experts),
      clock_(clock),
      owned_(std::move(owned)),
      waves_(job.training().waves()),
      mixtures_(MixturesOf(job)) {
  const v1::Training& training = job.training();
  for (uint32_t replica : owned_) {
    models_.push_back(std::make_unique<ReplicaModel>(
        backend, job, plan, parameters, replica, training.lanes(), training.waves(),
        training.unroll()));
  }
  if (job.model().has_tables()) tables_.emplace(backend, job, tables, clock);
  const int exchanges = models_.front()->segments() - 1;
  plans_.resize(exchanges);
  for (auto& plans : plans_) plans.resize(waves_ * owned_.size());
  chosen_.resize(exchanges);
  for (auto& chosen : chosen_) chosen.resize(waves_ * owned_.size());
  totals_.resize(mixtures_.size());
  importance_gradient_.resize(mixtures_.size());
  load_gradient_.resize(mixtures_.size());
  int64_t most = 0;
  for (const Mixture& mixture : mixtures_) {
    most = std::max(most, TokensOf(mixture) * std::max(mixture.in, mixture.out));
  }
  rows_.assign(owned_.size(), std::vector<float>(most));
  gates_.resize(owned_.size());
}

v1::FrameId StepRunner::FrameOf(int segment, int32_t wave) const {
  v1::FrameId id;
  id.set_step(step_);
  id.set_wave(wave);
  const MoeExchange& exchange = models_.front()->exchange(segment);
  id.set_layer(exchange.id.layer);
  id.set_mixture(exchange.id.mixture);
  id.set_call(exchange.call);
  id.set_mode(mode_ == PassMode::kTrain ? v1::MODE_TRAIN : v1::MODE_EVALUATE);
  return id;
}

int64_t StepRunner::TokensOf(const Mixture& mixture) const {
  const v1::Training& training = job_.training();
  return int64_t{training.lanes()} / waves_ * training.unroll() / mixture.calls;
}

const RoutingPlan& StepRunner::PlanOf(int segment, int32_t wave, size_t owned) const {
  return *plans_[segment][wave * owned_.size() + owned];
}

absl::StatusOr<PassResult> StepRunner::Forward(uint64_t step, PassMode mode,
                                               uint64_t version, int64_t tokens_of_step,
                                               std::span<const MicroBatch> batches) {
  step_ = step;
  mode_ = mode;
  std::span<const StepTables> tables;
  if (tables_.has_value()) {
    ASSIGN_OR_RETURN(tables, tables_->Pull(version, mode, step, batches));
  }
  for (size_t i = 0; i < models_.size(); ++i) {
    models_[i]->BeginStep(step, mode, tokens_of_step,
                          tables.empty() ? nullptr : &tables[i]);
  }
  const bool scores = tables_.has_value() && mode == PassMode::kEvaluate;
  const int segments = models_.front()->segments();
  for (int segment = 0; segment < segments; ++segment) {
    for (int32_t wave = 0; wave < waves_; ++wave) {
      if (segment > 0) RETURN_IF_ERROR(AwaitForward(segment - 1, wave));
      backend_.parallel().For(owned_.size(), [&](int64_t i) {
        const MicroBatch& batch = batches[i * waves_ + wave];
        models_[i]->Forward(segment, wave, batch.input, batch.target);
      });
      if (segment < segments - 1) {
        RETURN_IF_ERROR(SendForward(segment, wave));
      }
    }
  }
  for (int32_t wave = 0; scores && wave < waves_; ++wave) {
    RETURN_IF_ERROR(tables_->Score(step, wave, version, models_, owned_, batches));
  }
  RETURN_IF_ERROR(CheckFinite());
  if (mode == PassMode::kTrain) RETURN_IF_ERROR(FormBalanceGradients());
  return Summarize(batches);
}

absl::Status StepRunner::SendForward(int segment, int32_t wave) {
  ActivityScope scope(clock_, Activity::kMoving);
  const ExpertLayout& layout = experts_.layout(models_.front()->exchange(segment).id);
  std::vector<ForwardCall> calls;
  for (size_t i = 0; i < owned_.size(); ++i) {
    const MoeCall& call = models_[i]->moe_call(segment, wave);
    auto& plan = plans_[segment][wave * owned_.size() + i];
    plan = std::make_unique<RoutingPlan>(layout, call.offset, call.expert, call.gate);
    ForwardCall forward;
    forward.replica = owned_[i];
    forward.plan = plan.get();
    forward.x = call.x.data();
    if (mode_ == PassMode::kTrain) {
      forward.importance = call.importance;
      forward.load = call.load;
    }
    calls.push_back(forward);
  }
  return experts_.SendForward(FrameOf(segment, wave), calls);
}

absl::Status StepRunner::AwaitRows(int segment, int32_t wave, BalanceTotals* totals) {
  std::vector<ForwardResult> results;
  for (size_t i = 0; i < owned_.size(); ++i) {
    results.push_back({owned_[i], &PlanOf(segment, wave, i), rows_[i].data()});
    if (Hierarchical(segment)) {
      results.back().chosen = &chosen_[segment][wave * owned_.size() + i];
    }
  }
  ActivityScope scope(clock_, Activity::kMoving);
  return experts_.AwaitForward(FrameOf(segment, wave), results, totals);
}

absl::Status StepRunner::AwaitForward(int segment, int32_t wave) {
  const MoeExchange& exchange = models_.front()->exchange(segment);
  const Mixture& mixture = mixtures_[exchange.mixture];
  const bool last_of_step = mode_ == PassMode::kTrain && wave == waves_ - 1 &&
                            exchange.call == mixture.calls - 1;
  RETURN_IF_ERROR(
      AwaitRows(segment, wave, last_of_step ? &totals_[exchange.mixture] : nullptr));
  const int64_t size = TokensOf(mixture) * mixture.out;
  backend_.parallel().For(owned_.size(), [&](int64_t i) {
    models_[i]->SetMoeOutput(segment, wave, std::span(rows_[i]).first(size));
  });
  return absl::OkStatus();
}

// The next answer is on its way while a model works on one.
absl::Status StepRunner::Recompute(int segment, int32_t wave) {
  const std::vector<int> again = models_.front()->recomputed(segment);
  const auto send = [&](size_t i) {
    if (i >= again.size()) return absl::OkStatus();
    return experts_.SendForwardAgain(FrameOf(again[i], wave), owned_);
  };
  RETURN_IF_ERROR(send(0));
  for (size_t i = 0; i < again.size(); ++i) {
    RETURN_IF_ERROR(send(i + 1));
    RETURN_IF_ERROR(AwaitRows(again[i], wave, /*totals=*/nullptr));
    const Mixture& mixture = mixtures_[MixtureOf(again[i])];
    const int64_t size = TokensOf(mixture) * mixture.out;
    backend_.parallel().For(owned_.size(), [&](int64_t r) {
      models_[r]->Recompute(segment, wave, i, std::span(rows_[r]).first(size));
    });
  }
  return absl::OkStatus();
}

absl::Status StepRunner::CheckFinite() const {
  for (size_t i = 0; i < owned_.size(); ++i) {
    for (int32_t wave = 0; wave < waves_; ++wave) {
      if (std::isfinite(models_[i]->loss_sum(wave))) continue;
      const std::string where = models_[i]->FirstNonFinite(wave);
      return absl::DataLossError(absl::StrCat(
          "the loss is not finite at step ", step_, " (replica ", owned_[i], ", wave ",
          wave, "): first NaN or infinity in ", where.empty() ? "the softmax" : where));
    }
  }
  return absl::OkStatus();
}

absl::Status StepRunner::FormBalanceGradients() {
  for (size_t m = 0; m < mixtures_.size(); ++m) {
    const v1::Moe& moe = mixtures_[m].moe;
    // A NaN in one column of a gate need not show in the loss.
    const BalanceMoments& moments = totals_[m].moments;
    if (!std::isfinite(moments.importance.variance) ||
        !std::isfinite(moments.load.variance)) {
      return absl::DataLossError(
          absl::StrCat("the balance of the experts is not finite at step ", step_,
                       ": NaN or infinity in the gate of ",
                       MixtureName(mixtures_[m].id.layer, mixtures_[m].part)));
    }
    if (moe.k_primary() > 0) {
      // The servers form the losses' gradients; what is left for the primary gate comes
      // with the backward replies.
      importance_gradient_[m].assign(moe.groups(), 0);
      load_gradient_[m].assign(moe.groups(), 0);
      continue;
    }
    CvSquared(totals_[m].importance, moe.w_importance(), &importance_gradient_[m]);
    CvSquared(totals_[m].load, moe.w_load(), &load_gradient_[m]);
  }
  return absl::OkStatus();
}

absl::Status StepRunner::Backward() {
  const int segments = models_.front()->segments();
  for (int segment = segments - 1; segment >= 0; --segment) {
    for (int32_t wave = 0; wave < waves_; ++wave) {
      if (segment < segments - 1) RETURN_IF_ERROR(AwaitBackward(segment, wave));
      RETURN_IF_ERROR(Recompute(segment, wave));
      backend_.parallel().For(owned_.size(),
                              [&](int64_t i) { models_[i]->Backward(segment, wave); });
      if (segment > 0) RETURN_IF_ERROR(SendBackward(segment - 1, wave));
    }
  }
  return absl::OkStatus();
}

absl::Status StepRunner::SendBackward(int segment, int32_t wave) {
  ActivityScope scope(clock_, Activity::kMoving);
  std::vector<BackwardCall> calls;
  for (size_t i = 0; i < owned_.size(); ++i) {
    calls.push_back(
        {owned_[i], &PlanOf(segment, wave, i), models_[i]->moe_output_gradient().data()});
    if (Hierarchical(segment)) {
      calls.back().moments = &totals_[MixtureOf(segment)].moments;
    }
  }
  return experts_.SendBackward(FrameOf(segment, wave), calls);
}

absl::Status StepRunner::AwaitBackward(int segment, int32_t wave) {
  const int32_t m = MixtureOf(segment);
  std::vector<BackwardResult> results;
  for (size_t i = 0; i < owned_.size(); ++i) {
    const RoutingPlan& plan = PlanOf(segment, wave, i);
    gates_[i].resize(plan.choices());
    results.push_back({owned_[i], &plan, rows_[i].data(), gates_[i].data()});
    // The same for all replicas.
    if (Hierarchical(segment)) {
      results.back().dload_primary = load_gradient_[m].data();
    }
  }
  ActivityScope scope(clock_, Activity::kMoving);
  RETURN_IF_ERROR(experts_.AwaitBackward(FrameOf(segment, wave), results));
  for (size_t i = 0; i < owned_.size(); ++i) {
    models_[i]->SetMoeGradient(
        segment, wave,
        std::span(rows_[i]).first(TokensOf(mixtures_[m]) * mixtures_[m].in), gates_[i],
        importance_gradient_[m], load_gradient_[m]);
  }
  return absl::OkStatus();
}

PassResult StepRunner::Summarize(std::span<const MicroBatch> batches) const {
  PassResult result;
  for (size_t i = 0; i < owned_.size(); ++i) {
    v1::ReplicaLoss loss;
    loss.set_replica(owned_[i]);
    for (int32_t wave = 0; wave < waves_; ++wave) {
      loss.set_loss_sum(loss.loss_sum() + models_[i]->loss_sum(wave));
      for (int32_t target : batches[i * waves_ + wave].target) {
        if (target >= 0) loss.set_tokens(loss.tokens() + 1);
      }
    }
    result.losses.push_back(loss);
  }
  for (const Mixture& mixture : mixtures_) {
    PassResult::Balance& balance = result.balance.emplace_back();
    balance.layer = mixture.id.layer;
    balance.part = mixture.part;
    balance.assigned.resize(mixture.moe.experts());
    balance.importance.resize(mixture.moe.experts());
  }
  for (int segment = 0; segment < models_.front()->segments() - 1; ++segment) {
    const MoeExchange& exchange = models_.front()->exchange(segment);
    const int64_t tokens = TokensOf(mixtures_[exchange.mixture]);
    for (size_t i = 0; i < owned_.size(); ++i) {
      for (int32_t wave = 0; wave < waves_; ++wave) {
        const std::span<const int32_t> offset =
            models_[i]->moe_call(segment, wave).offset;
        const auto target = std::span(batches[i * waves_ + wave].target)
                                .subspan(exchange.call * tokens, tokens);
        for (size_t t = 0; t < target.size(); ++t) {
          if (target[t] < 0 || offset[t] < offset[t + 1]) continue;
          ++result.balance[exchange.mixture].unrouted;
        }
      }
    }
  }
  ForEachChoice([&](const Choice& choice) {
    PassResult::Balance& balance = result.balance[choice.mixture];
    ++balance.assigned[choice.expert];
    if (mode_ == PassMode::kEvaluate) {
      balance.importance[choice.expert] += choice.gate;
    }
  });
  return result;
}

void StepRunner::ForEachChoice(const std::function<void(const Choice&)>& fn) const {
  Choice choice;
  for (int segment = 0; segment < models_.front()->segments() - 1; ++segment) {
    const MoeExchange& exchange = models_.front()->exchange(segment);
    choice.mixture = exchange.mixture;
    const auto first =
        static_cast<int32_t>(exchange.call * TokensOf(mixtures_[exchange.mixture]));
    for (size_t i = 0; i < owned_.size(); ++i) {
      choice.replica = owned_[i];
      for (choice.wave = 0; choice.wave < waves_; ++choice.wave) {
        if (Hierarchical(segment)) {
          const ChosenPairs& chosen = chosen_[segment][choice.wave * owned_.size() + i];
          for (size_t j = 0; j < chosen.expert.size(); ++j) {
            choice.token = chosen.token[j];
            choice.expert = chosen.expert[j];
            choice.gate = chosen.gate.empty() ? 0 : chosen.gate[j];
            fn(choice);
          }
          continue;
        }
        const MoeCall& call = models_[i]->moe_call(segment, choice.wave);
        const auto tokens = static_cast<int32_t>(call.offset.size()) - 1;
        for (int32_t t = 0; t < tokens; ++t) {
          choice.token = first + t;
          for (int32_t j = call.offset[t]; j < call.offset[t + 1]; ++j) {
            choice.expert = call.expert[j];
            choice.gate = call.gate[j];
            fn(choice);
          }
        }
      }
    }
  }
}

}  // namespace moe
