#include "server/inbox.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}
// For what would be good at another time or from another sender.
template <typename... Parts>
absl::Status Untimely(const Parts&... parts) {
  return absl::FailedPreconditionError(absl::StrCat(parts...));
}

RendezvousKey KeyOf(const v1::FrameId& id) {
  return {id.mode(), id.step(), id.wave(), id.layer()};
}

void SetId(const RendezvousKey& key, v1::FrameId* id) {
  id->set_step(key.step);
  id->set_wave(key.wave);
  id->set_layer(key.layer);
  id->set_mode(key.mode);
}

template <typename Request>
std::vector<uint32_t> ReplicasOf(const Request& request) {
  std::vector<uint32_t> replicas;
  for (const auto& frame : request.frames()) replicas.push_back(frame.replica());
  return replicas;
}

// "forward step 17 wave 0 layer 1 of worker/w1"
std::string Of(const std::string& worker, RendezvousKind kind, const RendezvousKey& key) {
  return absl::StrCat(Describe(kind, key), " of ", worker);
}

std::string Replica(uint32_t replica) { return absl::StrCat("replica ", replica); }

}  // namespace

Inbox::Inbox(Backend& backend, const ShardSet& shards, Work& work, Options options)
    : backend_(backend),
      shards_(shards),
      work_(work),
      options_(std::move(options)),
      replicas_(options_.worker_of.size()),
      version_(options_.version),
      forward_(RendezvousKind::kForward, replicas_),
      backward_(RendezvousKind::kBackward, replicas_),
      close_(RendezvousKind::kClose, replicas_),
      apply_(RendezvousKind::kApply, replicas_) {}

// ---------------------------------------------------------------- checks

bool Inbox::IsWorker(const std::string& member) const {
  const std::vector<std::string>& workers = options_.worker_of;
  return std::find(workers.begin(), workers.end(), member) != workers.end();
}

absl::Status Inbox::CheckReplicas(const std::string& worker,
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

absl::StatusOr<const LayerShape*> Inbox::CheckFrame(const v1::FrameId& id) const {
  if (id.mode() != v1::MODE_TRAIN && id.mode() != v1::MODE_EVALUATE) {
    return Bad("mode ", id.mode(), " is unknown");
  }
  if (id.wave() >= options_.waves) {
    return Bad("wave ", id.wave(), " is out of range: the job has ", options_.waves);
  }
  const LayerShape* shape = shards_.FindLayer(id.layer());
  if (shape == nullptr) {
    return Bad("no expert of layer ", id.layer(), " is on ", options_.server);
  }
  return shape;
}

absl::Status Inbox::CheckStep(uint64_t step) const {
  if (step == version_) return absl::OkStatus();
  return Untimely("step ", step, " is not the current one: the shards of ",
                  options_.server, " have version ", version_);
}

absl::Status Inbox::CheckNotClosed(uint64_t step,
                                   std::span<const uint32_t> replicas) const {
  for (uint32_t r : replicas) {
    if (close_.Has({.step = step}, r)) {
      return Untimely("replica ", r, " has closed the step already");
    }
  }
  return absl::OkStatus();
}

absl::Status Inbox::CheckForward(const RendezvousKey& key,
                                 std::span<const uint32_t> replicas) const {
  if (key.mode == v1::MODE_EVALUATE) return absl::OkStatus();
  RETURN_IF_ERROR(CheckStep(key.step));
  RETURN_IF_ERROR(CheckNotClosed(key.step, replicas));
  if (key.wave == 0) return absl::OkStatus();
  const RendezvousKey before = {key.mode, key.step, key.wave - 1, key.layer};
  for (uint32_t r : replicas) {
    if (!forward_.Has(before, r)) {
      return Untimely("replica ", r, " did not send wave ", before.wave, " before");
    }
  }
  return absl::OkStatus();
}

absl::Status Inbox::CheckBackward(const RendezvousKey& key,
                                  std::span<const uint32_t> replicas) const {
  if (key.mode != v1::MODE_TRAIN) return Bad("an evaluation has no backward pass");
  RETURN_IF_ERROR(CheckStep(key.step));
  RETURN_IF_ERROR(CheckNotClosed(key.step, replicas));
  const RendezvousKey last = {key.mode, key.step, options_.waves - 1, key.layer};
  for (uint32_t r : replicas) {
    if (!forward_.Has(last, r)) {
      return Untimely("replica ", r, " did not send ",
                      Describe(RendezvousKind::kForward, last), " before");
    }
  }
  return absl::OkStatus();
}

// That the moments are those of the step's other frames; the first ones count.
absl::Status Inbox::SettleMoments(uint32_t layer, std::span<const uint32_t> replicas,
                                  const NewParts<BackwardInput>& parts) {
  std::optional<BalanceMoments> settled;
  if (const auto known = moments_.find(layer); known != moments_.end()) {
    settled = known->second;
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::optional<BalanceMoments>& mine = parts[i]->moments;
    if (!mine.has_value()) continue;
    if (!settled.has_value()) settled = mine;
    for (const auto& [name, moments, others] :
         {std::tuple("importance", mine->importance, settled->importance),
          std::tuple("load", mine->load, settled->load)}) {
      if (moments == others) continue;
      return Bad(Replica(replicas[i]),
                 absl::StrFormat(
                     ": mean %.17g and variance %.17g of %s differ from %.17g "
                     "and %.17g of another frame of the step",
                     moments.mean, moments.variance, name, others.mean, others.variance));
    }
  }
  if (settled.has_value()) moments_[layer] = *settled;
  return absl::OkStatus();
}

absl::Status Inbox::CheckClose(uint64_t step, std::span<const uint32_t> replicas) const {
  RETURN_IF_ERROR(CheckStep(step));
  for (uint32_t r : replicas) {
    for (uint32_t layer : shards_.layers()) {
      for (uint32_t wave = 0; wave < options_.waves; ++wave) {
        const RendezvousKey key = {v1::MODE_TRAIN, step, wave, layer};
        if (!backward_.Has(key, r)) {
          return Untimely("replica ", r, " did not send ",
                          Describe(RendezvousKind::kBackward, key), " before");
        }
      }
    }
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------- messages

absl::Status Inbox::Handle(const std::string& worker, v1::ExchangeRequest request,
                           const std::shared_ptr<ReplySink>& sink) {
  if (request.generation() != options_.generation) {
    return Untimely(worker, " sent a message of generation ", request.generation(),
                    "; the current one is ", options_.generation);
  }
  switch (request.message_case()) {
    case v1::ExchangeRequest::kPull:
      return Annotate(HandlePull(std::move(*request.mutable_pull()), sink),
                      absl::StrCat("pull of ", worker));
    case v1::ExchangeRequest::kForward:
      return Annotate(
          HandleForward(worker, request.forward(), sink),
          Of(worker, RendezvousKind::kForward, KeyOf(request.forward().id())));
    case v1::ExchangeRequest::kBackward:
      return Annotate(
          HandleBackward(worker, request.backward(), sink),
          Of(worker, RendezvousKind::kBackward, KeyOf(request.backward().id())));
    case v1::ExchangeRequest::kClose: {
      const RendezvousKey key = {.step = request.close().step()};
      return Annotate(HandleClose(worker, std::move(*request.mutable_close()), sink),
                      Of(worker, RendezvousKind::kClose, key));
    }
    case v1::ExchangeRequest::kApply:
      return Annotate(
          HandleApply(worker, request.apply(), sink),
          Of(worker, RendezvousKind::kApply, {.step = request.apply().step()}));
    case v1::ExchangeRequest::kHello:
      return Untimely(worker, " said Hello twice");
    case v1::ExchangeRequest::MESSAGE_NOT_SET:
      break;
  }
  return Bad(worker, " sent an empty message");
}

template <typename Part>
absl::Status Inbox::Admit(
    Rendezvous<Part>& rendezvous, const RendezvousKey& key,
    std::span<const uint32_t> replicas, const std::shared_ptr<ReplySink>& sink,
    const std::function<absl::Status()>& check,
    const std::function<absl::StatusOr<NewParts<Part>>()>& decode,
    const std::function<absl::Status(const NewParts<Part>&)>& settle,
    const std::function<void(NewParts<Part>)>& complete) {
  {
    absl::MutexLock lock(&mutex_);
    ASSIGN_OR_RETURN(const bool known, rendezvous.AnswerAgain(key, replicas, sink));
    if (known) return absl::OkStatus();
    RETURN_IF_ERROR(check());
  }
  ASSIGN_OR_RETURN(const NewParts<Part> parts, decode());
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const bool known, rendezvous.AnswerAgain(key, replicas, sink));
  if (known) return absl::OkStatus();
  RETURN_IF_ERROR(check());
  RETURN_IF_ERROR(settle(parts));
  if (auto all = rendezvous.Add(key, replicas, parts, sink, absl::Now())) {
    complete(*std::move(all));
  }
  return absl::OkStatus();
}

absl::Status Inbox::HandlePull(v1::PullRequest pull,
                               const std::shared_ptr<ReplySink>& sink) {
  if (pull.shards().empty()) return Bad("names no shard");
  for (const std::string& shard : pull.shards()) {
    if (!shards_.Pullable(shard)) {
      return Bad("no dense or replica shard ", shard, " is on ", options_.server);
    }
  }
  absl::MutexLock lock(&mutex_);
  if (pull.version() == version_) {
    work_.Pull(std::move(pull), sink);
  } else if (pull.version() == version_ + 1) {
    pending_pulls_.push_back({absl::Now(), std::move(pull), sink});
  } else {
    return NotToBeHad(pull.version());
  }
  return absl::OkStatus();
}

absl::Status Inbox::HandleForward(const std::string& worker,
                                  const v1::ForwardRequest& request,
                                  const std::shared_ptr<ReplySink>& sink) {
  const RendezvousKey key = KeyOf(request.id());
  const std::vector<uint32_t> replicas = ReplicasOf(request);
  ASSIGN_OR_RETURN(const LayerShape* shape, CheckFrame(request.id()));
  RETURN_IF_ERROR(CheckReplicas(worker, replicas));
  {
    // Nobody waits for it any more.
    absl::MutexLock lock(&mutex_);
    if (key.mode == v1::MODE_EVALUATE && key.step < evaluation_) return absl::OkStatus();
  }
  return Admit<ForwardInput>(
      forward_, key, replicas, sink, [&] { return CheckForward(key, replicas); },
      [&]() -> absl::StatusOr<NewParts<ForwardInput>> {
        NewParts<ForwardInput> parts;
        for (const v1::ForwardFrame& frame : request.frames()) {
          absl::StatusOr<ForwardInput> input =
              DecodeForward(backend_, *shape, key.mode, frame);
          if (!input.ok()) return Annotate(input.status(), Replica(frame.replica()));
          parts.push_back(std::make_shared<const ForwardInput>(*std::move(input)));
        }
        return parts;
      },
      [&](const NewParts<ForwardInput>& parts) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        if (key.mode == v1::MODE_TRAIN) {
          std::vector<int64_t>& rows = forward_rows_[key];
          rows.resize(replicas_);
          for (size_t i = 0; i < replicas.size(); ++i) {
            rows[replicas[i]] = parts[i]->x.rows();
          }
        }
        return absl::OkStatus();
      },
      [&](NewParts<ForwardInput> all) { work_.Forward(key, std::move(all)); });
}

absl::Status Inbox::HandleBackward(const std::string& worker,
                                   const v1::BackwardRequest& request,
                                   const std::shared_ptr<ReplySink>& sink) {
  const RendezvousKey key = KeyOf(request.id());
  const std::vector<uint32_t> replicas = ReplicasOf(request);
  ASSIGN_OR_RETURN(const LayerShape* shape, CheckFrame(request.id()));
  RETURN_IF_ERROR(CheckReplicas(worker, replicas));
  std::vector<int64_t> rows;
  return Admit<BackwardInput>(
      backward_, key, replicas, sink,
      [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
        RETURN_IF_ERROR(CheckBackward(key, replicas));
        rows = forward_rows_.at(key);
        return absl::OkStatus();
      },
      [&]() -> absl::StatusOr<NewParts<BackwardInput>> {
        NewParts<BackwardInput> parts;
        for (const v1::BackwardFrame& frame : request.frames()) {
          absl::StatusOr<BackwardInput> input =
              DecodeBackward(backend_, *shape, rows[frame.replica()], frame);
          if (!input.ok()) return Annotate(input.status(), Replica(frame.replica()));
          parts.push_back(std::make_shared<const BackwardInput>(*std::move(input)));
        }
        return parts;
      },
      [&](const NewParts<BackwardInput>& parts) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return SettleMoments(key.layer, replicas, parts);
      },
      [&](NewParts<BackwardInput> all) { work_.Backward(key, std::move(all)); });
}

absl::Status Inbox::HandleClose(const std::string& worker, v1::CloseRequest request,
                                const std::shared_ptr<ReplySink>& sink) {
  const RendezvousKey key = {.step = request.step()};
  const std::vector<uint32_t> replicas(request.replicas().begin(),
                                       request.replicas().end());
  RETURN_IF_ERROR(CheckReplicas(worker, replicas));
  return Admit<CloseInput>(
      close_, key, replicas, sink, [&] { return CheckClose(key.step, replicas); },
      [&]() -> absl::StatusOr<NewParts<CloseInput>> {
        ASSIGN_OR_RETURN(CloseInput input, DecodeClose(shards_.dense_sizes(),
                                                       shards_.ReplicaShardsOf(replicas),
                                                       replicas_, std::move(request)));
        return NewParts<CloseInput>(replicas.size(),
                                    std::make_shared<const CloseInput>(std::move(input)));
      },
      [&](const NewParts<CloseInput>& parts) ABSL_EXCLUSIVE_LOCKS_REQUIRED(
          mutex_) -> absl::Status {
        const CloseInput& mine = *parts[0];
        const CloseInput* other = close_.AnyPart(key);
        if (other == nullptr ||
            (other->learning_rate == mine.learning_rate && other->cut == mine.cut)) {
          return absl::OkStatus();
        }
        return Bad(absl::StrFormat(
            "learning rate %.17g and cut %d differ from %.17g and %d of another worker",
            mine.learning_rate, mine.cut, other->learning_rate, other->cut));
      },
      [&](NewParts<CloseInput> all) { work_.Close(key, std::move(all)); });
}

absl::Status Inbox::HandleApply(const std::string& worker,
                                const v1::ApplyRequest& request,
                                const std::shared_ptr<ReplySink>& sink) {
  const RendezvousKey key = {.step = request.step()};
  const double scale = request.scale();
  std::vector<uint32_t> replicas;
  for (uint32_t r = 0; r < replicas_; ++r) {
    if (options_.worker_of[r] == worker) replicas.push_back(r);
  }
  RETURN_IF_ERROR(CheckReplicas(worker, replicas));
  return Admit<v1::ApplyRequest>(
      apply_, key, replicas, sink,
      [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
        if (awaits_scale_ == key.step) return absl::OkStatus();
        return Untimely("that step does not await a scale");
      },
      [&]() -> absl::StatusOr<NewParts<v1::ApplyRequest>> {
        if (!std::isfinite(scale) || scale < 0 || scale > 1) {
          return Bad("scale ", scale, " is not within 0 and 1");
        }
        return NewParts<v1::ApplyRequest>(
            replicas.size(), std::make_shared<const v1::ApplyRequest>(request));
      },
      [&](const NewParts<v1::ApplyRequest>&)
          ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
            const v1::ApplyRequest* other = apply_.AnyPart(key);
            if (other == nullptr || other->scale() == scale) return absl::OkStatus();
            return Bad(absl::StrFormat("scale %.17g differs from %.17g of another worker",
                                       scale, other->scale()));
          },
      [&](NewParts<v1::ApplyRequest>) { work_.Apply(key, scale); });
}

// ---------------------------------------------------------------- answers

std::shared_ptr<v1::ExchangeResponse> Inbox::NewResponse() const {
  auto response = std::make_shared<v1::ExchangeResponse>();
  response->set_generation(options_.generation);
  return response;
}

void Inbox::FinishForward(const RendezvousKey& key,
                          std::vector<v1::ForwardReply> replies) {
  absl::MutexLock lock(&mutex_);
  forward_.Finish(key, [&](std::span<const uint32_t> replicas) {
    auto response = NewResponse();
    SetId(key, response->mutable_forward()->mutable_id());
    for (uint32_t r : replicas) {
      *response->mutable_forward()->add_replies() = std::move(replies[r]);
    }
    return response;
  });
  if (key.mode == v1::MODE_EVALUATE && key.step > evaluation_) {
    evaluation_ = key.step;
    forward_.Forget([&](const RendezvousKey& other) {
      return other.mode == v1::MODE_EVALUATE && other.step < key.step;
    });
  }
}

void Inbox::FinishBackward(const RendezvousKey& key,
                           std::vector<v1::BackwardReply> replies) {
  absl::MutexLock lock(&mutex_);
  backward_.Finish(key, [&](std::span<const uint32_t> replicas) {
    auto response = NewResponse();
    SetId(key, response->mutable_backward()->mutable_id());
    for (uint32_t r : replicas) {
      *response->mutable_backward()->add_replies() = std::move(replies[r]);
    }
    return response;
  });
}

void Inbox::FinishClose(const RendezvousKey& key,
                        const std::vector<v1::TensorSquareSum>& sums) {
  absl::MutexLock lock(&mutex_);
  close_.Finish(key, [&](std::span<const uint32_t>) {
    auto response = NewResponse();
    response->mutable_close()->set_step(key.step);
    response->mutable_close()->set_version(version_);
    response->mutable_close()->mutable_square_sums()->Assign(sums.begin(), sums.end());
    return response;
  });
}

void Inbox::FinishApply(const RendezvousKey& key) {
  absl::MutexLock lock(&mutex_);
  apply_.Finish(key, [&](std::span<const uint32_t>) {
    auto response = NewResponse();
    response->mutable_apply()->set_step(key.step);
    response->mutable_apply()->set_version(version_);
    return response;
  });
}

void Inbox::AwaitScale(uint64_t step) {
  absl::MutexLock lock(&mutex_);
  awaits_scale_ = step;
}

void Inbox::Advance() {
  absl::MutexLock lock(&mutex_);
  const uint64_t step = version_++;
  awaits_scale_.reset();
  forward_rows_.clear();
  moments_.clear();
  const auto over = [&](const RendezvousKey& key) {
    return key.mode == v1::MODE_TRAIN && key.step <= step;
  };
  forward_.Forget(over);
  backward_.Forget(over);
  // Who did not get the last answer of this step may still ask for it.
  const auto older = [&](const RendezvousKey& key) { return key.step < step; };
  close_.Forget(older);
  apply_.Forget(older);
  for (PendingPull& pending : pending_pulls_) {
    work_.Pull(std::move(pending.pull), std::move(pending.sink));
  }
  pending_pulls_.clear();
}

absl::Status Inbox::NotToBeHad(uint64_t version) const {
  return Untimely("version ", version, " is not to be had: the shards of ",
                  options_.server, " have version ", version_);
}

absl::Status Inbox::CheckVersion(uint64_t version) const {
  absl::MutexLock lock(&mutex_);
  return version == version_ ? absl::OkStatus() : NotToBeHad(version);
}

uint64_t Inbox::version() const {
  absl::MutexLock lock(&mutex_);
  return version_;
}

std::optional<Waiting> Inbox::Oldest() const {
  absl::MutexLock lock(&mutex_);
  std::optional<Waiting> oldest;
  for (std::optional<Waiting> waiting :
       {forward_.Oldest(), backward_.Oldest(), close_.Oldest(), apply_.Oldest()}) {
    if (waiting.has_value() && (!oldest.has_value() || waiting->since < oldest->since)) {
      oldest = std::move(waiting);
    }
  }
  for (const PendingPull& pending : pending_pulls_) {
    if (oldest.has_value() && oldest->since <= pending.since) continue;
    const RendezvousKey key = {.step = version_};
    oldest = Waiting{pending.since, {}, Describe(RendezvousKind::kClose, key)};
    for (uint32_t r = 0; r < replicas_; ++r) {
      if (!close_.Has(key, r)) oldest->missing.push_back(r);
    }
  }
  return oldest;
}

}  // namespace moe
