#include "server/conversation.h"

#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "server/refusal.h"

namespace moe {
namespace {

// That two frames of a step name the same moments.
absl::Status CheckSame(const BalanceMoments& mine, const BalanceMoments& others) {
  for (const auto& [name, moments, other] :
       {std::tuple("importance", mine.importance, others.importance),
        std::tuple("load", mine.load, others.load)}) {
    if (moments == other) continue;
    return Bad(absl::StrFormat(
        "mean %.17g and variance %.17g of %s differ from %.17g and %.17g of another "
        "frame of the step",
        moments.mean, moments.variance, name, other.mean, other.variance));
  }
  return absl::OkStatus();
}

// That a layer of so many experts, of which `here` are some, may have the moments.
absl::Status CheckPossible(const char* name, const Moments& moments, int64_t experts,
                           double most, const Spread& here) {
  if (MayContain(moments, experts, most, here)) return absl::OkStatus();
  return Bad(absl::StrFormat(
      "mean %.17g and variance %.17g of %s are impossible for the layer's %d experts, of "
      "which the %d that are here have the mean %.17g and the sum of squared deviations "
      "%.17g",
      moments.mean, moments.variance, name, experts, here.count, here.mean, here.m2));
}

Spread FromProto(const v1::Spread& spread, int64_t count) {
  return {count, spread.mean(), spread.m2()};
}

}  // namespace

Conversation::Conversation(const ShardSet& shards, Options options)
    : shards_(shards),
      options_(std::move(options)),
      replicas_(options_.worker_of.size()),
      version_(options_.version),
      forward_(RendezvousKind::kForward, replicas_),
      backward_(RendezvousKind::kBackward, replicas_),
      close_(RendezvousKind::kClose, replicas_),
      apply_(RendezvousKind::kApply, replicas_) {}

std::vector<uint32_t> Conversation::ReplicasOf(const std::string& worker) const {
  std::vector<uint32_t> replicas;
  for (uint32_t r = 0; r < replicas_; ++r) {
    if (options_.worker_of[r] == worker) replicas.push_back(r);
  }
  return replicas;
}

// ---------------------------------------------------------------- checks

absl::Status Conversation::CheckReplicas(const std::string& worker,
                                         std::span<const uint32_t> replicas) const {
  if (replicas.empty()) return Bad("names no replica");
  for (size_t i = 0; i < replicas.size(); ++i) {
    const uint32_t r = replicas[i];
    if (r >= replicas_) {
      return Bad("replica ", r, " is out of range: the job has ", replicas_);
    }
    if (i > 0 && replicas[i - 1] >= r) {
      return Bad("replica ", r, " comes after replica ", replicas[i - 1],
                 "; replicas must ascend");
    }
    if (options_.worker_of[r] != worker) {
      return Untimely("replica ", r, " is ", options_.worker_of[r], "'s, not ", worker,
                      "'s");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<const LayerShape*> Conversation::CheckFrame(const v1::FrameId& id) const {
  if (id.mode() != v1::MODE_TRAIN && id.mode() != v1::MODE_EVALUATE) {
    return Bad("mode ", id.mode(), " is unknown");
  }
  if (id.wave() >= options_.waves) {
    return Bad("wave ", id.wave(), " is out of range: the job has ", options_.waves);
  }
  const LayerShape* shape = shards_.FindMixture({id.layer(), id.mixture()});
  if (shape == nullptr) {
    return Bad("no expert of layer ", id.layer(),
               id.mixture() > 0 ? absl::StrCat(" mixture ", id.mixture()) : "", " is on ",
               options_.server);
  }
  if (id.call() >= shape->calls) {
    return Bad("call ", id.call(), " is out of range: the mixture has ", shape->calls,
               " in each wave");
  }
  return shape;
}

absl::Status Conversation::CheckStep(uint64_t step) const {
  if (step == version_) return absl::OkStatus();
  return Untimely("step ", step, " is not the current one: the shards of ",
                  options_.server, " have version ", version_);
}

absl::Status Conversation::CheckNotClosed(uint64_t step,
                                          std::span<const uint32_t> replicas) const {
  for (uint32_t r : replicas) {
    if (close_.Has({.step = step}, r)) {
      return Untimely("replica ", r, " has closed the step already");
    }
  }
  return absl::OkStatus();
}

std::vector<RendezvousKey> Conversation::KeysOf(v1::Mode mode, uint64_t step) const {
  std::vector<RendezvousKey> keys;
  for (const MixtureId& id : shards_.mixtures()) {
    for (uint32_t call = 0; call < shards_.FindMixture(id)->calls; ++call) {
      for (uint32_t wave = 0; wave < options_.waves; ++wave) {
        keys.push_back({mode, step, wave, id.layer, id.mixture, call});
      }
    }
  }
  return keys;
}

// A worker begins a batch when it has all answers of the one before.
absl::Status Conversation::CheckEvaluation(uint64_t batch,
                                           std::span<const uint32_t> replicas) const {
  if (batch <= evaluation_) return absl::OkStatus();
  if (batch > evaluation_ + 1) {
    return Untimely("evaluation ", batch, " is out of turn: evaluation ", evaluation_ + 1,
                    " comes before it");
  }
  const std::vector<RendezvousKey> keys = KeysOf(v1::MODE_EVALUATE, evaluation_);
  for (uint32_t r : replicas) {
    for (const RendezvousKey& before : keys) {
      if (!forward_.Has(before, r)) {
        return Untimely("replica ", r, " did not send ",
                        Describe(RendezvousKind::kForward, before), " before");
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Conversation::CheckForward(const RendezvousKey& key,
                                        std::span<const uint32_t> replicas) const {
  if (key.mode == v1::MODE_EVALUATE) return CheckEvaluation(key.step, replicas);
  RETURN_IF_ERROR(CheckStep(key.step));
  RETURN_IF_ERROR(CheckNotClosed(key.step, replicas));
  if (key.wave == 0 && key.call == 0) return absl::OkStatus();
  RendezvousKey before = key;
  if (key.wave > 0) {
    --before.wave;
  } else {
    before.wave = options_.waves - 1;
    --before.call;
  }
  for (uint32_t r : replicas) {
    if (forward_.Has(before, r)) continue;
    if (before.call == key.call) {
      return Untimely("replica ", r, " did not send wave ", before.wave, " before");
    }
    return Untimely("replica ", r, " did not send ",
                    Describe(RendezvousKind::kForward, before), " before");
  }
  return absl::OkStatus();
}

absl::Status Conversation::CheckBackward(const RendezvousKey& key,
                                         std::span<const uint32_t> replicas) const {
  if (key.mode != v1::MODE_TRAIN) return Bad("an evaluation has no backward pass");
  RETURN_IF_ERROR(CheckStep(key.step));
  RETURN_IF_ERROR(CheckNotClosed(key.step, replicas));
  const LayerShape& shape = *shards_.FindMixture(key.mixture_id());
  RendezvousKey last = key;
  last.wave = options_.waves - 1;
  last.call = shape.calls - 1;
  for (uint32_t r : replicas) {
    if (!forward_.Has(last, r)) {
      return Untimely("replica ", r, " did not send ",
                      Describe(RendezvousKind::kForward, last), " before");
    }
  }
  if (shape.hierarchical && !balance_.contains(key.mixture_id())) {
    return Untimely("comes before the answer to ",
                    Describe(RendezvousKind::kForward, last),
                    ", on which its moments depend");
  }
  return absl::OkStatus();
}

absl::Status Conversation::CheckClose(uint64_t step,
                                      std::span<const uint32_t> replicas) const {
  RETURN_IF_ERROR(CheckStep(step));
  const std::vector<RendezvousKey> keys = KeysOf(v1::MODE_TRAIN, step);
  for (uint32_t r : replicas) {
    for (const RendezvousKey& key : keys) {
      if (!backward_.Has(key, r)) {
        return Untimely("replica ", r, " did not send ",
                        Describe(RendezvousKind::kBackward, key), " before");
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Conversation::CheckApply(uint64_t step) const {
  if (awaits_scale_ == step) return absl::OkStatus();
  return Untimely("that step does not await a scale");
}

absl::Status Conversation::CheckVersion(uint64_t version) const {
  if (version == version_) return absl::OkStatus();
  return Untimely("version ", version, " is not to be had: the shards of ",
                  options_.server, " have version ", version_);
}

// ---------------------------------------------------------------- agreement

void Conversation::SettleRows(const RendezvousKey& key,
                              std::span<const uint32_t> replicas,
                              const NewParts<ForwardInput>& parts) {
  if (key.mode != v1::MODE_TRAIN) return;
  std::vector<int64_t>& rows = forward_rows_[key];
  rows.resize(replicas_);
  for (size_t i = 0; i < replicas.size(); ++i) rows[replicas[i]] = parts[i]->x.rows();
}

absl::Status Conversation::SettleMoments(MixtureId mixture,
                                         std::span<const uint32_t> replicas,
                                         const NewParts<BackwardInput>& parts) {
  const auto found = balance_.find(mixture);
  if (found == balance_.end()) return absl::OkStatus();  // flat
  Balance& balance = found->second;
  const int64_t experts = shards_.FindMixture(mixture)->experts;
  // No expert's number is above that of the tokens.
  const double most = static_cast<double>(balance.tokens) * kMostGate;
  std::optional<BalanceMoments> moments = balance.moments;
  for (size_t i = 0; i < parts.size(); ++i) {
    const BalanceMoments& mine = *parts[i]->moments;
    absl::Status status;
    if (moments.has_value()) {
      status = CheckSame(mine, *moments);
    } else {
      status.Update(CheckPossible("importance", mine.importance, experts, most,
                                  balance.importance));
      status.Update(CheckPossible("load", mine.load, experts, most, balance.load));
    }
    RETURN_IF_ERROR(Annotate(status, absl::StrCat("replica ", replicas[i])));
    moments = mine;
  }
  balance.moments = moments;
  return absl::OkStatus();
}

absl::Status Conversation::SettleClose(uint64_t step, const CloseInput& mine) const {
  const CloseInput* other = close_.AnyPart({.step = step});
  if (other == nullptr || other->learning_rate == mine.learning_rate) {
    return absl::OkStatus();
  }
  return Bad(absl::StrFormat("learning rate %.17g differs from %.17g of another worker",
                             mine.learning_rate, other->learning_rate));
}

absl::Status Conversation::SettleScale(uint64_t step, double scale) const {
  const v1::ApplyRequest* other = apply_.AnyPart({.step = step});
  if (other == nullptr || other->scale() == scale) return absl::OkStatus();
  return Bad(absl::StrFormat("scale %.17g differs from %.17g of another worker", scale,
                             other->scale()));
}

// ---------------------------------------------------------------- progress

void Conversation::ForwardDone(const RendezvousKey& key,
                               std::span<const v1::ForwardReply> replies) {
  if (key.mode == v1::MODE_EVALUATE) {
    if (key.step <= evaluation_) return;
    evaluation_ = key.step;
    forward_.Forget([&](const RendezvousKey& other) { return Over(other); });
    return;
  }
  const LayerShape& shape = *shards_.FindMixture(key.mixture_id());
  if (!shape.hierarchical || key.wave + 1 < options_.waves) return;
  Balance& balance = balance_[key.mixture_id()];
  // The same for all replicas.
  for (const v1::GroupOutput& group : replies[0].groups()) {
    const int64_t count = shape.experts_per_group;
    balance.importance =
        Join(balance.importance, FromProto(group.importance_spread(), count));
    balance.load = Join(balance.load, FromProto(group.load_spread(), count));
    balance.tokens = group.tokens();
  }
}

void Conversation::Advance() {
  const uint64_t step = version_++;
  awaits_scale_.reset();
  forward_rows_.clear();
  balance_.clear();
  const auto over = [&](const RendezvousKey& key) {
    return key.mode == v1::MODE_TRAIN && key.step <= step;
  };
  forward_.Forget(over);
  backward_.Forget(over);
  // Who did not get the last answer of this step may still ask for it.
  const auto older = [&](const RendezvousKey& key) { return key.step < step; };
  close_.Forget(older);
  apply_.Forget(older);
}

std::optional<Waiting> Conversation::Oldest() const {
  std::optional<Waiting> oldest;
  for (std::optional<Waiting> waiting :
       {forward_.Oldest(), backward_.Oldest(), close_.Oldest(), apply_.Oldest()}) {
    if (waiting.has_value() && (!oldest.has_value() || waiting->since < oldest->since)) {
      oldest = std::move(waiting);
    }
  }
  return oldest;
}

std::vector<uint32_t> Conversation::NotClosed() const {
  std::vector<uint32_t> missing;
  for (uint32_t r = 0; r < replicas_; ++r) {
    if (!close_.Has({.step = version_}, r)) missing.push_back(r);
  }
  return missing;
}

}  // namespace moe
