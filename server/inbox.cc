#include "server/inbox.h"

#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/base/protocol.h"
#include "common/base/status_macros.h"
#include "common/net/checksum.h"
#include "server/refusal.h"

namespace moe {
namespace {

RendezvousKey KeyOf(const v1::FrameId& id) {
  return {id.mode(), id.step(), id.wave(), id.layer(), id.mixture(), id.call()};
}

void SetId(const RendezvousKey& key, v1::FrameId* id) {
  id->set_step(key.step);
  id->set_wave(key.wave);
  id->set_layer(key.layer);
  id->set_mode(key.mode);
  id->set_mixture(key.mixture);
  id->set_call(key.call);
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

// What every frame is decoded to; the error names the replica.
template <typename Input, typename Frames, typename Decode>
absl::StatusOr<Conversation::NewParts<Input>> DecodeAll(const Frames& frames,
                                                        const Decode& decode) {
  Conversation::NewParts<Input> parts;
  for (const auto& frame : frames) {
    absl::StatusOr<Input> input = decode(frame);
    if (!input.ok()) {
      return Annotate(input.status(), absl::StrCat("replica ", frame.replica()));
    }
    parts.push_back(std::make_shared<const Input>(*std::move(input)));
  }
  return parts;
}

}  // namespace

Inbox::Inbox(Backend& backend, const ShardSet& shards, Work& work, Options options,
             TraceWriter* trace)
    : backend_(backend),
      shards_(shards),
      work_(work),
      generation_(options.generation),
      replicas_(options.worker_of.size()),
      trace_(trace),
      conversation_(shards, std::move(options)) {}

bool Inbox::IsWorker(const std::string& member) const {
  absl::MutexLock lock(&mutex_);
  return !conversation_.ReplicasOf(member).empty();
}

absl::Status Inbox::CheckReplicas(const std::string& worker,
                                  std::span<const uint32_t> replicas) const {
  absl::MutexLock lock(&mutex_);
  return conversation_.CheckReplicas(worker, replicas);
}

absl::StatusOr<const LayerShape*> Inbox::CheckFrame(const v1::FrameId& id) const {
  absl::MutexLock lock(&mutex_);
  return conversation_.CheckFrame(id);
}

// ---------------------------------------------------------------- messages

absl::Status Inbox::Handle(const std::string& worker,
                           Received<v1::ExchangeRequest> received,
                           const std::shared_ptr<ReplySink>& sink, bool again) {
  v1::ExchangeRequest& request = received.message;
  if (request.generation() != generation_) {
    return Untimely(worker, " sent a message of generation ", request.generation(),
                    "; the current one is ", generation_);
  }
  switch (request.message_case()) {
    case v1::ExchangeRequest::kPull: {
      Pull pull;
      pull.worker = worker;
      pull.sequence = request.sequence();
      pull.again = again;
      return Annotate(HandlePull(std::move(pull), request.pull(), sink),
                      absl::StrCat("pull of ", worker));
    }
    case v1::ExchangeRequest::kForward:
      if (again) return HandleAgain(worker, request, sink);
      return Annotate(
          HandleForward(worker, request.forward(), received.payloads, sink),
          Of(worker, RendezvousKind::kForward, KeyOf(request.forward().id())));
    case v1::ExchangeRequest::kBackward:
      if (again) return HandleAgain(worker, request, sink);
      return Annotate(
          HandleBackward(worker, request.backward(), received.payloads, sink),
          Of(worker, RendezvousKind::kBackward, KeyOf(request.backward().id())));
    case v1::ExchangeRequest::kClose: {
      if (again) return HandleAgain(worker, request, sink);
      const RendezvousKey key = {.step = request.close().step()};
      return Annotate(HandleClose(worker, std::move(*request.mutable_close()), sink),
                      Of(worker, RendezvousKind::kClose, key));
    }
    case v1::ExchangeRequest::kApply:
      if (again) return HandleAgain(worker, request, sink);
      return Annotate(
          HandleApply(worker, request.apply(), sink),
          Of(worker, RendezvousKind::kApply, {.step = request.apply().step()}));
    case v1::ExchangeRequest::kScore: {
      Score score;
      score.worker = worker;
      score.sequence = request.sequence();
      score.again = again;
      return Annotate(
          HandleScore(std::move(score), request.score(), sink),
          absl::StrFormat("score of evaluation batch %d wave %d of %s",
                          request.score().batch(), request.score().wave(), worker));
    }
    case v1::ExchangeRequest::kHello:
      return Untimely(worker, " said Hello twice");
    case v1::ExchangeRequest::MESSAGE_NOT_SET:
      break;
  }
  return Bad(worker, " sent an empty message");
}

template <typename Part>
absl::StatusOr<bool> Inbox::Known(Rendezvous<Part>& rendezvous, const RendezvousKey& key,
                                  std::span<const uint32_t> replicas,
                                  const std::shared_ptr<ReplySink>& sink) {
  ASSIGN_OR_RETURN(const Again again, rendezvous.AnswerAgain(key, replicas, sink));
  if (again == Again::kNo) return false;
  if (trace_ != nullptr) {
    trace_->Note(again == Again::kAnswered ? TraceEvent::kAnswered : TraceEvent::kIgnored,
                 rendezvous.kind(), key, replicas);
  }
  return true;
}

template <typename Part>
absl::Status Inbox::AnswerAgain(const std::string& worker,
                                Rendezvous<Part>& (Conversation::*rendezvous)(),
                                const RendezvousKey& key,
                                std::span<const uint32_t> replicas,
                                const std::shared_ptr<ReplySink>& sink) {
  absl::MutexLock lock(&mutex_);
  Rendezvous<Part>& all = (conversation_.*rendezvous)();
  RETURN_IF_ERROR(Annotate(conversation_.CheckReplicas(worker, replicas),
                           Of(worker, all.kind(), key)));
  ASSIGN_OR_RETURN(const bool known, Known(all, key, replicas, sink));
  // What isn't known any more has been answered, and its sender went on.
  if (!known && trace_ != nullptr) {
    trace_->Note(TraceEvent::kIgnored, all.kind(), key, replicas);
  }
  return absl::OkStatus();
}

absl::Status Inbox::HandleAgain(const std::string& worker,
                                const v1::ExchangeRequest& request,
                                const std::shared_ptr<ReplySink>& sink) {
  switch (request.message_case()) {
    case v1::ExchangeRequest::kForward:
      return AnswerAgain(worker, &Conversation::forward, KeyOf(request.forward().id()),
                         ReplicasOf(request.forward()), sink);
    case v1::ExchangeRequest::kBackward:
      return AnswerAgain(worker, &Conversation::backward, KeyOf(request.backward().id()),
                         ReplicasOf(request.backward()), sink);
    case v1::ExchangeRequest::kClose: {
      const auto& replicas = request.close().replicas();
      return AnswerAgain(worker, &Conversation::close, {.step = request.close().step()},
                         std::vector<uint32_t>(replicas.begin(), replicas.end()), sink);
    }
    default: {
      std::vector<uint32_t> replicas;
      {
        absl::MutexLock lock(&mutex_);
        replicas = conversation_.ReplicasOf(worker);
      }
      return AnswerAgain(worker, &Conversation::apply, {.step = request.apply().step()},
                         replicas, sink);
    }
  }
}

template <typename Part>
absl::Status Inbox::Admit(
    Rendezvous<Part>& (Conversation::*rendezvous)(), const RendezvousKey& key,
    std::span<const uint32_t> replicas, const std::shared_ptr<ReplySink>& sink,
    const std::function<absl::Status()>& check,
    const std::function<absl::StatusOr<NewParts<Part>>()>& decode,
    const std::function<absl::Status(const NewParts<Part>&)>& settle,
    const std::function<void(NewParts<Part>)>& complete) {
  {
    absl::MutexLock lock(&mutex_);
    ASSIGN_OR_RETURN(const bool known,
                     Known((conversation_.*rendezvous)(), key, replicas, sink));
    if (known) return absl::OkStatus();
    RETURN_IF_ERROR(check());
  }
  ASSIGN_OR_RETURN(const NewParts<Part> parts, decode());
  absl::MutexLock lock(&mutex_);
  Rendezvous<Part>& all = (conversation_.*rendezvous)();
  ASSIGN_OR_RETURN(const bool known, Known(all, key, replicas, sink));
  if (known) return absl::OkStatus();
  RETURN_IF_ERROR(check());
  RETURN_IF_ERROR(settle(parts));
  if (trace_ != nullptr) trace_->Note(TraceEvent::kReceived, all.kind(), key, replicas);
  if (auto whole = all.Add(key, replicas, parts, sink, absl::Now())) {
    complete(*std::move(whole));
  }
  return absl::OkStatus();
}

absl::Status Inbox::HandlePull(Pull pull, const v1::PullRequest& request,
                               const std::shared_ptr<ReplySink>& sink) {
  pull.version = request.version();
  pull.evaluation = request.evaluation();
  pull.shards.assign(request.shards().begin(), request.shards().end());
  std::set<std::string> asked;
  for (const v1::RowSet& rows : request.rows()) {
    ASSIGN_OR_RETURN(std::vector<int32_t> index,
                     DecodeRowSet(shards_.table_shapes(), rows));
    if (!asked.insert(rows.shard()).second) {
      return Bad("asks for rows of ", rows.shard(), " twice");
    }
    pull.rows.push_back({rows.shard(), std::move(index)});
  }
  absl::MutexLock lock(&mutex_);
  Unanswered& unanswered = pulls_[pull.worker];
  // The answer is on its way.
  if (pull.again && unanswered.Contains(pull.sequence)) return absl::OkStatus();
  if (pull.shards.empty() && pull.rows.empty()) return Bad("names no shard");
  for (const std::string& shard : pull.shards) {
    if (!shards_.Pullable(shard)) {
      return Bad("no dense or replica shard ", shard, " is on ",
                 conversation_.options().server);
    }
    if (!asked.insert(shard).second) return Bad("asks for ", shard, " twice");
  }
  const bool pending = pull.version == conversation_.version() + 1;
  if (!pending) {
    const absl::Status there = conversation_.CheckVersion(pull.version);
    // Who asked for it twice has its answer.
    if (pull.again && !there.ok()) return absl::OkStatus();
    RETURN_IF_ERROR(there);
  }
  // Every shard in a request of its own, of this version and of the next.
  RETURN_IF_ERROR(unanswered.Add(pull.sequence, pull.again, 2 * shards_.size(),
                                 pull.worker, "pulls"));
  if (pending) {
    pending_pulls_.push_back({absl::Now(), std::move(pull), sink});
  } else {
    work_.Pull(std::move(pull), sink);
  }
  return absl::OkStatus();
}

absl::Status Inbox::HandleForward(const std::string& worker,
                                  const v1::ForwardRequest& request,
                                  const Payloads& payloads,
                                  const std::shared_ptr<ReplySink>& sink) {
  const RendezvousKey key = KeyOf(request.id());
  const std::vector<uint32_t> replicas = ReplicasOf(request);
  ASSIGN_OR_RETURN(const LayerShape* shape, CheckFrame(request.id()));
  RETURN_IF_ERROR(CheckReplicas(worker, replicas));
  {
    absl::MutexLock lock(&mutex_);
    if (conversation_.Over(key)) return absl::OkStatus();
  }
  return Admit<ForwardInput>(
      &Conversation::forward, key, replicas, sink,
      [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return conversation_.CheckForward(key, replicas);
      },
      [&] {
        return DecodeAll<ForwardInput>(
            request.frames(), [&](const v1::ForwardFrame& frame) {
              return DecodeForward(backend_, *shape, key.mode, frame,
                                   payloads.Of(frame, frame.x()));
            });
      },
      [&](const NewParts<ForwardInput>& parts) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        conversation_.SettleRows(key, replicas, parts);
        return absl::OkStatus();
      },
      [&](NewParts<ForwardInput> all) { work_.Forward(key, std::move(all)); });
}

absl::Status Inbox::HandleBackward(const std::string& worker,
                                   const v1::BackwardRequest& request,
                                   const Payloads& payloads,
                                   const std::shared_ptr<ReplySink>& sink) {
  const RendezvousKey key = KeyOf(request.id());
  const std::vector<uint32_t> replicas = ReplicasOf(request);
  ASSIGN_OR_RETURN(const LayerShape* shape, CheckFrame(request.id()));
  RETURN_IF_ERROR(CheckReplicas(worker, replicas));
  std::vector<int64_t> rows;
  return Admit<BackwardInput>(
      &Conversation::backward, key, replicas, sink,
      [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
        RETURN_IF_ERROR(conversation_.CheckBackward(key, replicas));
        rows = conversation_.RowsOf(key);
        return absl::OkStatus();
      },
      [&] {
        return DecodeAll<BackwardInput>(
            request.frames(), [&](const v1::BackwardFrame& frame) {
              return DecodeBackward(backend_, *shape, rows[frame.replica()], frame,
                                    payloads.Of(frame, frame.dy()));
            });
      },
      [&](const NewParts<BackwardInput>& parts) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return conversation_.SettleMoments(key.mixture_id(), replicas, parts);
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
      &Conversation::close, key, replicas, sink,
      [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return conversation_.CheckClose(key.step, replicas);
      },
      [&]() -> absl::StatusOr<NewParts<CloseInput>> {
        ASSIGN_OR_RETURN(CloseInput input,
                         DecodeClose(shards_.dense_sizes(), shards_.table_shapes(),
                                     shards_.ReplicaShardsOf(replicas), replicas_,
                                     std::move(request)));
        return NewParts<CloseInput>(replicas.size(),
                                    std::make_shared<const CloseInput>(std::move(input)));
      },
      [&](const NewParts<CloseInput>& parts)
          ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
            RETURN_IF_ERROR(conversation_.SettleClose(key.step, *parts[0]));
            if (trace_ != nullptr) {
              trace_->NoteParts(TraceEvent::kReceived, key.step, replicas[0], *parts[0]);
            }
            return absl::OkStatus();
          },
      [&](NewParts<CloseInput> all) { work_.Close(key, std::move(all)); });
}

absl::Status Inbox::HandleApply(const std::string& worker,
                                const v1::ApplyRequest& request,
                                const std::shared_ptr<ReplySink>& sink) {
  const RendezvousKey key = {.step = request.step()};
  const double scale = request.scale();
  std::vector<uint32_t> replicas;
  {
    absl::MutexLock lock(&mutex_);
    replicas = conversation_.ReplicasOf(worker);
  }
  RETURN_IF_ERROR(CheckReplicas(worker, replicas));
  return Admit<v1::ApplyRequest>(
      &Conversation::apply, key, replicas, sink,
      [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return conversation_.CheckApply(key.step);
      },
      [&]() -> absl::StatusOr<NewParts<v1::ApplyRequest>> {
        if (!std::isfinite(scale) || scale < 0 || scale > 1) {
          return Bad("scale ", scale, " is not within 0 and 1");
        }
        return NewParts<v1::ApplyRequest>(
            replicas.size(), std::make_shared<const v1::ApplyRequest>(request));
      },
      [&](const NewParts<v1::ApplyRequest>&) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return conversation_.SettleScale(key.step, scale);
      },
      [&](NewParts<v1::ApplyRequest>) { work_.Apply(key, scale); });
}

absl::Status Inbox::HandleScore(Score score, const v1::ScoreRequest& request,
                                const std::shared_ptr<ReplySink>& sink) {
  RETURN_IF_ERROR(CheckReplicas(score.worker, ReplicasOf(request)));
  const absl::Status there = CheckVersion(request.version());
  // Who asked for it twice has its answer.
  if (score.again && !there.ok()) return absl::OkStatus();
  RETURN_IF_ERROR(there);
  if (shards_.softmax().empty()) return Bad("no rows of the softmax are here");
  size_t tokens = 0;
  for (const v1::ScoreFrame& frame : request.frames()) {
    tokens += frame.target().size() / sizeof(int32_t);
  }
  if (tokens > kMaxScoreTokens) {
    return Bad("has ", tokens, " tokens instead of at most ", kMaxScoreTokens);
  }
  score.batch = request.batch();
  score.wave = request.wave();
  score.part = request.part();
  score.version = request.version();
  ASSIGN_OR_RETURN(
      score.inputs,
      DecodeAll<ScoreInput>(request.frames(), [&](const v1::ScoreFrame& frame) {
        return DecodeScore(backend_, shards_.d_model(), shards_.vocabulary(), frame);
      }));
  absl::MutexLock lock(&mutex_);
  Unanswered& unanswered = scores_[score.worker];
  // The answer is on its way.
  if (score.again && unanswered.Contains(score.sequence)) return absl::OkStatus();
  RETURN_IF_ERROR(unanswered.Add(score.sequence, score.again, kMaxScoresUnderWay,
                                 score.worker, "scores"));
  work_.Score(std::move(score), sink);
  return absl::OkStatus();
}

// ---------------------------------------------------------------- answers

std::shared_ptr<v1::ExchangeResponse> Inbox::NewResponse() const {
  auto response = std::make_shared<v1::ExchangeResponse>();
  response->set_generation(generation_);
  return response;
}

void Inbox::FinishForward(const RendezvousKey& key,
                          std::vector<v1::ForwardReply> replies) {
  absl::MutexLock lock(&mutex_);
  conversation_.ForwardDone(key, replies);
  conversation_.forward().Finish(key, [&](std::span<const uint32_t> replicas) {
    auto response = NewResponse();
    SetId(key, response->mutable_forward()->mutable_id());
    for (uint32_t r : replicas) {
      *response->mutable_forward()->add_replies() = std::move(replies[r]);
    }
    Seal(response.get());
    return response;
  });
}

void Inbox::FinishBackward(const RendezvousKey& key,
                           std::vector<v1::BackwardReply> replies) {
  absl::MutexLock lock(&mutex_);
  conversation_.backward().Finish(key, [&](std::span<const uint32_t> replicas) {
    auto response = NewResponse();
    SetId(key, response->mutable_backward()->mutable_id());
    for (uint32_t r : replicas) {
      *response->mutable_backward()->add_replies() = std::move(replies[r]);
    }
    Seal(response.get());
    return response;
  });
}

void Inbox::FinishClose(const RendezvousKey& key,
                        const std::vector<v1::TensorSquareSum>& sums, bool cut) {
  absl::MutexLock lock(&mutex_);
  conversation_.close().Finish(key, [&](std::span<const uint32_t>) {
    auto response = NewResponse();
    response->mutable_close()->set_step(key.step);
    response->mutable_close()->set_version(conversation_.version());
    response->mutable_close()->mutable_square_sums()->Assign(sums.begin(), sums.end());
    response->mutable_close()->set_cut(cut);
    Seal(response.get());
    return response;
  });
}

void Inbox::FinishApply(const RendezvousKey& key) {
  absl::MutexLock lock(&mutex_);
  conversation_.apply().Finish(key, [&](std::span<const uint32_t>) {
    auto response = NewResponse();
    response->mutable_apply()->set_step(key.step);
    response->mutable_apply()->set_version(conversation_.version());
    Seal(response.get());
    return response;
  });
}

void Inbox::FinishPull(const Pull& pull) {
  absl::MutexLock lock(&mutex_);
  pulls_[pull.worker].Remove(pull.sequence, pull.again);
}

void Inbox::FinishScore(const Score& score) {
  absl::MutexLock lock(&mutex_);
  scores_[score.worker].Remove(score.sequence, score.again);
}

void Inbox::AwaitScale(uint64_t step) {
  absl::MutexLock lock(&mutex_);
  conversation_.AwaitScale(step);
}

void Inbox::Advance() {
  absl::MutexLock lock(&mutex_);
  conversation_.Advance();
  for (PendingPull& pending : pending_pulls_) {
    work_.Pull(std::move(pending.pull), std::move(pending.sink));
  }
  pending_pulls_.clear();
}

absl::Status Inbox::CheckVersion(uint64_t version) const {
  absl::MutexLock lock(&mutex_);
  return conversation_.CheckVersion(version);
}

uint64_t Inbox::version() const {
  absl::MutexLock lock(&mutex_);
  return conversation_.version();
}

std::optional<Waiting> Inbox::Oldest() const {
  absl::MutexLock lock(&mutex_);
  std::optional<Waiting> oldest = conversation_.Oldest();
  for (const PendingPull& pending : pending_pulls_) {
    if (oldest.has_value() && oldest->since <= pending.since) continue;
    const RendezvousKey key = {.step = conversation_.version()};
    oldest = Waiting{pending.since, conversation_.NotClosed(),
                     Describe(RendezvousKind::kClose, key)};
  }
  return oldest;
}

}  // namespace moe
