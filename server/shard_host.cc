#include "server/shard_host.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/manifest.h"
#include "common/io/file.h"
#include "glog/logging.h"

namespace moe {
namespace {

// Runs a function when the last copy of what holds it is gone.
class OnDestruction {
 public:
  explicit OnDestruction(std::function<void()> fn) : fn_(std::move(fn)) {}
  ~OnDestruction() { fn_(); }

 private:
  std::function<void()> fn_;
};

RendezvousKey KeyOf(const v1::FrameId& id) {
  return {id.mode(), id.step(), id.wave(), id.layer()};
}

// "forward step 17 wave 0 layer 1 of replica 2 (worker/w1)"
std::string Where(RendezvousKind kind, const RendezvousKey& key, uint32_t replica,
                  const std::string& worker) {
  return absl::StrCat(Describe(kind, key), " of replica ", replica, " (", worker, ")");
}

// By replica.
std::vector<std::string> WorkersOf(const v1::ClusterState& state) {
  std::vector<std::string> workers(state.job().training().replicas(), "nobody");
  for (const v1::ReplicaAssignment& assignment : state.replicas()) {
    if (assignment.replica() < workers.size()) {
      workers[assignment.replica()] = assignment.worker();
    }
  }
  return workers;
}

template <typename Request>
std::vector<uint32_t> ReplicasOf(const Request& request) {
  std::vector<uint32_t> replicas;
  for (const auto& frame : request.frames()) replicas.push_back(frame.replica());
  return replicas;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ShardHost>> ShardHost::Load(Backend& backend,
                                                           Options options) {
  ASSIGN_OR_RETURN(std::unique_ptr<ShardSet> shards,
                   ShardSet::Load(backend, options.state, options.server));
  return std::unique_ptr<ShardHost>(
      new ShardHost(backend, std::move(options), std::move(shards)));
}

ShardHost::ShardHost(Backend& backend, Options options, std::unique_ptr<ShardSet> shards)
    : options_(std::move(options)),
      backend_(backend),
      job_(options_.state.job()),
      generation_(options_.state.generation()),
      replicas_(job_.training().replicas()),
      waves_(job_.training().waves()),
      worker_of_(WorkersOf(options_.state)),
      shards_(std::move(shards)),
      version_(options_.state.start_step()),
      forward_(RendezvousKind::kForward, replicas_),
      backward_(RendezvousKind::kBackward, replicas_),
      close_(RendezvousKind::kClose, replicas_),
      apply_(RendezvousKind::kApply, replicas_),
      status_(shards_->Status()),
      engine_([this] { OnIdle(); }) {}

ShardHost::~ShardHost() { engine_.Stop(); }

// ---------------------------------------------------------------- checks

bool ShardHost::IsWorker(const std::string& member) const {
  return std::find(worker_of_.begin(), worker_of_.end(), member) != worker_of_.end();
}

absl::Status ShardHost::CheckReplicas(const std::string& worker,
                                      std::span<const uint32_t> replicas) const {
  if (replicas.empty()) return absl::InvalidArgumentError("names no replica");
  for (size_t i = 0; i < replicas.size(); ++i) {
    const uint32_t r = replicas[i];
    if (r >= replicas_) {
      return absl::InvalidArgumentError(
          absl::StrCat("replica ", r, " is out of range: the job has ", replicas_));
    }
    if (i > 0 && replicas[i - 1] >= r) {
      return absl::InvalidArgumentError(
          absl::StrCat("replica ", r, " comes after replica ", replicas[i - 1],
                       "; replicas must ascend"));
    }
    if (worker_of_[r] != worker) {
      return absl::FailedPreconditionError(
          absl::StrCat("replica ", r, " is ", worker_of_[r], "'s, not ", worker, "'s"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<const LayerShape*> ShardHost::CheckFrame(const v1::FrameId& id) const {
  if (id.mode() != v1::MODE_TRAIN && id.mode() != v1::MODE_EVALUATE) {
    return absl::InvalidArgumentError(absl::StrCat("mode ", id.mode(), " is unknown"));
  }
  if (id.wave() >= waves_) {
    return absl::InvalidArgumentError(
        absl::StrCat("wave ", id.wave(), " is out of range: the job has ", waves_));
  }
  const LayerShape* shape = shards_->FindLayer(id.layer());
  if (shape == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("no expert of layer ", id.layer(), " is on ", options_.server));
  }
  return shape;
}

absl::Status ShardHost::CheckStep(uint64_t step) const {
  if (step == version_) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("step ", step, " is not the current one: the shards of ",
                   options_.server, " have version ", version_));
}

absl::Status ShardHost::CheckForwardOrder(const RendezvousKey& key,
                                          std::span<const uint32_t> replicas) const {
  if (key.mode == v1::MODE_EVALUATE) return absl::OkStatus();
  RETURN_IF_ERROR(CheckStep(key.step));
  for (uint32_t r : replicas) {
    if (close_.Has({.step = key.step}, r)) {
      return absl::FailedPreconditionError(
          absl::StrCat("replica ", r, " has closed the step already"));
    }
    const RendezvousKey before = {key.mode, key.step, key.wave - 1, key.layer};
    if (key.wave > 0 && !forward_.Has(before, r)) {
      return absl::FailedPreconditionError(
          absl::StrCat("replica ", r, " did not send wave ", before.wave, " before"));
    }
  }
  return absl::OkStatus();
}

absl::Status ShardHost::CheckBackwardOrder(const RendezvousKey& key,
                                           std::span<const uint32_t> replicas) const {
  if (key.mode != v1::MODE_TRAIN) {
    return absl::InvalidArgumentError("an evaluation has no backward pass");
  }
  RETURN_IF_ERROR(CheckStep(key.step));
  for (uint32_t r : replicas) {
    if (close_.Has({.step = key.step}, r)) {
      return absl::FailedPreconditionError(
          absl::StrCat("replica ", r, " has closed the step already"));
    }
    if (!forward_.Has(key, r)) {
      return absl::FailedPreconditionError(
          absl::StrCat("replica ", r, " did not send its forward frame before"));
    }
  }
  return absl::OkStatus();
}

absl::Status ShardHost::CheckCloseOrder(uint64_t step,
                                        std::span<const uint32_t> replicas) const {
  RETURN_IF_ERROR(CheckStep(step));
  for (uint32_t r : replicas) {
    for (uint32_t layer : shards_->layers()) {
      for (uint32_t wave = 0; wave < waves_; ++wave) {
        const RendezvousKey key = {v1::MODE_TRAIN, step, wave, layer};
        if (!backward_.Has(key, r)) {
          return absl::FailedPreconditionError(
              absl::StrCat("replica ", r, " did not send ",
                           Describe(RendezvousKind::kBackward, key), " before"));
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ShardHost::failure() const {
  absl::MutexLock lock(&mutex_);
  return failure_;
}

// ---------------------------------------------------------------- messages

absl::Status ShardHost::Handle(const std::string& worker, v1::ExchangeRequest request,
                               const std::shared_ptr<ReplySink>& sink) {
  RETURN_IF_ERROR(failure());
  if (request.generation() != generation_) {
    return absl::FailedPreconditionError(
        absl::StrCat(worker, " sent a message of generation ", request.generation(),
                     "; the current one is ", generation_));
  }
  const absl::Time start = absl::Now();
  absl::Status status;
  switch (request.message_case()) {
    case v1::ExchangeRequest::kPull:
      status = HandlePull(std::move(*request.mutable_pull()), sink);
      status = Annotate(status, absl::StrCat("pull of ", worker));
      break;
    case v1::ExchangeRequest::kForward:
      status = HandleForward(worker, request.forward(), sink);
      break;
    case v1::ExchangeRequest::kBackward:
      status = HandleBackward(worker, request.backward(), sink);
      break;
    case v1::ExchangeRequest::kClose:
      status = HandleClose(worker, std::move(*request.mutable_close()), sink);
      break;
    case v1::ExchangeRequest::kApply:
      status = HandleApply(worker, request.apply(), sink);
      break;
    case v1::ExchangeRequest::kHello:
      return absl::FailedPreconditionError(absl::StrCat(worker, " said Hello twice"));
    case v1::ExchangeRequest::MESSAGE_NOT_SET:
      return absl::InvalidArgumentError(absl::StrCat(worker, " sent an empty message"));
  }
  engine_.AddMoving(absl::Now() - start);
  return status;
}

absl::Status ShardHost::HandlePull(v1::PullRequest pull,
                                   const std::shared_ptr<ReplySink>& sink) {
  if (pull.shards().empty()) return absl::InvalidArgumentError("names no shard");
  for (const std::string& shard : pull.shards()) {
    if (!shards_->Pullable(shard)) {
      return absl::InvalidArgumentError(
          absl::StrCat("no dense or replica shard ", shard, " is on ", options_.server));
    }
  }
  absl::MutexLock lock(&mutex_);
  if (pull.version() == version_ + 1) {
    pending_pulls_.push_back({absl::Now(), std::move(pull), sink});
    return absl::OkStatus();
  }
  if (pull.version() != version_) {
    return absl::FailedPreconditionError(
        absl::StrCat("version ", pull.version(), " is not to be had: the shards of ",
                     options_.server, " have version ", version_));
  }
  Post([this, pull = std::move(pull), sink] {
    AnswerPull(pull, *sink);
    return absl::OkStatus();
  });
  return absl::OkStatus();
}

absl::Status ShardHost::HandleForward(const std::string& worker,
                                      const v1::ForwardRequest& request,
                                      const std::shared_ptr<ReplySink>& sink) {
  const RendezvousKey key = KeyOf(request.id());
  const std::vector<uint32_t> replicas = ReplicasOf(request);
  const std::string context =
      absl::StrCat(Describe(RendezvousKind::kForward, key), " of ", worker);
  // Once before the work of decoding, once when nothing comes between check and effect.
  const auto check = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::StatusOr<bool> {
    if (key.mode == v1::MODE_EVALUATE && key.step < evaluation_) return true;
    ASSIGN_OR_RETURN(const bool known, forward_.AnswerAgain(key, replicas, sink));
    if (!known) RETURN_IF_ERROR(CheckForwardOrder(key, replicas));
    return known;
  };

  const absl::StatusOr<const LayerShape*> shape = CheckFrame(request.id());
  if (!shape.ok()) return Annotate(shape.status(), context);
  RETURN_IF_ERROR(Annotate(CheckReplicas(worker, replicas), context));
  {
    absl::MutexLock lock(&mutex_);
    const absl::StatusOr<bool> known = check();
    if (!known.ok()) return Annotate(known.status(), context);
    if (*known) return absl::OkStatus();
  }
  std::vector<std::shared_ptr<const ForwardInput>> parts;
  for (const v1::ForwardFrame& frame : request.frames()) {
    absl::StatusOr<ForwardInput> input =
        DecodeForward(backend_, **shape, key.mode, frame);
    if (!input.ok()) {
      return Annotate(input.status(),
                      Where(RendezvousKind::kForward, key, frame.replica(), worker));
    }
    parts.push_back(std::make_shared<const ForwardInput>(*std::move(input)));
  }

  absl::MutexLock lock(&mutex_);
  const absl::StatusOr<bool> known = check();
  if (!known.ok()) return Annotate(known.status(), context);
  if (*known) return absl::OkStatus();
  if (key.mode == v1::MODE_TRAIN) {
    std::vector<int64_t>& rows = forward_rows_[key];
    rows.resize(replicas_);
    for (size_t i = 0; i < replicas.size(); ++i) rows[replicas[i]] = parts[i]->x.rows();
  }
  if (auto all = forward_.Add(key, replicas, parts, sink, absl::Now())) {
    Post([this, key, all = *std::move(all)] { return RunForward(key, all); });
  }
  return absl::OkStatus();
}

absl::Status ShardHost::HandleBackward(const std::string& worker,
                                       const v1::BackwardRequest& request,
                                       const std::shared_ptr<ReplySink>& sink) {
  const RendezvousKey key = KeyOf(request.id());
  const std::vector<uint32_t> replicas = ReplicasOf(request);
  const std::string context =
      absl::StrCat(Describe(RendezvousKind::kBackward, key), " of ", worker);
  const auto check = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::StatusOr<bool> {
    ASSIGN_OR_RETURN(const bool known, backward_.AnswerAgain(key, replicas, sink));
    if (!known) RETURN_IF_ERROR(CheckBackwardOrder(key, replicas));
    return known;
  };

  const absl::StatusOr<const LayerShape*> shape = CheckFrame(request.id());
  if (!shape.ok()) return Annotate(shape.status(), context);
  RETURN_IF_ERROR(Annotate(CheckReplicas(worker, replicas), context));
  std::vector<int64_t> rows;
  {
    absl::MutexLock lock(&mutex_);
    const absl::StatusOr<bool> known = check();
    if (!known.ok()) return Annotate(known.status(), context);
    if (*known) return absl::OkStatus();
    rows = forward_rows_.at(key);
  }
  std::vector<std::shared_ptr<const BackwardInput>> parts;
  for (const v1::BackwardFrame& frame : request.frames()) {
    absl::StatusOr<BackwardInput> input =
        DecodeBackward(backend_, **shape, rows[frame.replica()], frame);
    if (!input.ok()) {
      return Annotate(input.status(),
                      Where(RendezvousKind::kBackward, key, frame.replica(), worker));
    }
    parts.push_back(std::make_shared<const BackwardInput>(*std::move(input)));
  }

  absl::MutexLock lock(&mutex_);
  const absl::StatusOr<bool> known = check();
  if (!known.ok()) return Annotate(known.status(), context);
  if (*known) return absl::OkStatus();
  if (auto all = backward_.Add(key, replicas, parts, sink, absl::Now())) {
    Post([this, key, all = *std::move(all)] { return RunBackward(key, all); });
  }
  return absl::OkStatus();
}

absl::Status ShardHost::HandleClose(const std::string& worker, v1::CloseRequest request,
                                    const std::shared_ptr<ReplySink>& sink) {
  const RendezvousKey key = {.step = request.step()};
  const std::vector<uint32_t> replicas(request.replicas().begin(),
                                       request.replicas().end());
  const std::string context =
      absl::StrCat(Describe(RendezvousKind::kClose, key), " of ", worker);
  const auto check = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::StatusOr<bool> {
    ASSIGN_OR_RETURN(const bool known, close_.AnswerAgain(key, replicas, sink));
    if (!known) RETURN_IF_ERROR(CheckCloseOrder(key.step, replicas));
    return known;
  };

  RETURN_IF_ERROR(Annotate(CheckReplicas(worker, replicas), context));
  {
    absl::MutexLock lock(&mutex_);
    const absl::StatusOr<bool> known = check();
    if (!known.ok()) return Annotate(known.status(), context);
    if (*known) return absl::OkStatus();
  }
  absl::StatusOr<CloseInput> input =
      DecodeClose(shards_->dense_sizes(), shards_->ReplicaShardsOf(replicas), replicas_,
                  std::move(request));
  if (!input.ok()) return Annotate(input.status(), context);
  const auto part = std::make_shared<const CloseInput>(*std::move(input));

  absl::MutexLock lock(&mutex_);
  const absl::StatusOr<bool> known = check();
  if (!known.ok()) return Annotate(known.status(), context);
  if (*known) return absl::OkStatus();
  if (const CloseInput* other = close_.AnyPart(key);
      other != nullptr &&
      (other->learning_rate != part->learning_rate || other->cut != part->cut)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: learning rate %.17g and cut %d differ from %.17g and %d of another worker",
        context, part->learning_rate, part->cut, other->learning_rate, other->cut));
  }
  const std::vector<std::shared_ptr<const CloseInput>> parts(replicas.size(), part);
  if (auto all = close_.Add(key, replicas, parts, sink, absl::Now())) {
    Post([this, key, all = *std::move(all)] { return RunClose(key, all); });
  }
  return absl::OkStatus();
}

absl::Status ShardHost::HandleApply(const std::string& worker,
                                    const v1::ApplyRequest& request,
                                    const std::shared_ptr<ReplySink>& sink) {
  const RendezvousKey key = {.step = request.step()};
  const std::string context =
      absl::StrCat(Describe(RendezvousKind::kApply, key), " of ", worker);
  std::vector<uint32_t> replicas;
  for (uint32_t r = 0; r < replicas_; ++r) {
    if (worker_of_[r] == worker) replicas.push_back(r);
  }
  RETURN_IF_ERROR(Annotate(CheckReplicas(worker, replicas), context));

  absl::MutexLock lock(&mutex_);
  const absl::StatusOr<bool> known = apply_.AnswerAgain(key, replicas, sink);
  if (!known.ok()) return Annotate(known.status(), context);
  if (*known) return absl::OkStatus();
  if (applying_ != request.step()) {
    return absl::FailedPreconditionError(
        absl::StrCat(context, ": that step does not await a scale"));
  }
  if (!std::isfinite(request.scale()) || request.scale() < 0 || request.scale() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(context, ": scale ", request.scale(), " is not within 0 and 1"));
  }
  if (const v1::ApplyRequest* other = apply_.AnyPart(key);
      other != nullptr && other->scale() != request.scale()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: scale %.17g differs from %.17g of another worker", context,
                        request.scale(), other->scale()));
  }
  const std::vector<std::shared_ptr<const v1::ApplyRequest>> parts(
      replicas.size(), std::make_shared<const v1::ApplyRequest>(request));
  if (apply_.Add(key, replicas, parts, sink, absl::Now()).has_value()) {
    Post([this, key, scale = request.scale()] { return RunApply(key, scale); });
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------- the engine

void ShardHost::Post(std::function<absl::Status()> task) {
  engine_.Post([this, task = std::move(task)] {
    if (!failure().ok()) return;
    const absl::Status status = task();
    if (!status.ok()) Fail(status);
  });
}

std::shared_ptr<v1::ExchangeResponse> ShardHost::NewResponse() const {
  auto response = std::make_shared<v1::ExchangeResponse>();
  response->set_generation(generation_);
  return response;
}

absl::Status ShardHost::RunForward(const RendezvousKey& key,
                                   const Forwards::Parts& parts) {
  std::vector<v1::ForwardReply> replies =
      shards_->layer(key.layer).Forward(key.mode, key.wave, parts);
  absl::MutexLock lock(&mutex_);
  forward_.Finish(key, [&](std::span<const uint32_t> replicas) {
    auto response = NewResponse();
    v1::ForwardResponse& forward = *response->mutable_forward();
    forward.mutable_id()->set_step(key.step);
    forward.mutable_id()->set_wave(key.wave);
    forward.mutable_id()->set_layer(key.layer);
    forward.mutable_id()->set_mode(key.mode);
    for (uint32_t r : replicas) *forward.add_replies() = std::move(replies[r]);
    return response;
  });
  if (key.mode == v1::MODE_EVALUATE && key.step > evaluation_) {
    evaluation_ = key.step;
    forward_.Forget([&](const RendezvousKey& other) {
      return other.mode == v1::MODE_EVALUATE && other.step < key.step;
    });
  }
  return absl::OkStatus();
}

absl::Status ShardHost::RunBackward(const RendezvousKey& key,
                                    const Backwards::Parts& parts) {
  std::vector<v1::BackwardReply> replies =
      shards_->layer(key.layer).Backward(key.wave, parts);
  absl::MutexLock lock(&mutex_);
  backward_.Finish(key, [&](std::span<const uint32_t> replicas) {
    auto response = NewResponse();
    v1::BackwardResponse& backward = *response->mutable_backward();
    backward.mutable_id()->set_step(key.step);
    backward.mutable_id()->set_wave(key.wave);
    backward.mutable_id()->set_layer(key.layer);
    backward.mutable_id()->set_mode(key.mode);
    for (uint32_t r : replicas) *backward.add_replies() = std::move(replies[r]);
    return response;
  });
  return absl::OkStatus();
}

absl::Status ShardHost::RunClose(const RendezvousKey& key, const Closes::Parts& parts) {
  RETURN_IF_ERROR(shards_->Close(parts));
  const ClosedStep closed = {key.step, parts[0]->learning_rate, parts[0]->cut};
  const bool clips = job_.optimizer().clip_norm() > 0;
  std::vector<v1::TensorSquareSum> sums;
  if (clips) {
    sums = shards_->SquareSums();
    closed_ = closed;
  } else {
    RETURN_IF_ERROR(ApplyStep(closed, 1));
  }
  absl::MutexLock lock(&mutex_);
  if (clips) applying_ = key.step;
  close_.Finish(key, [&](std::span<const uint32_t>) {
    auto response = NewResponse();
    response->mutable_close()->set_step(key.step);
    response->mutable_close()->set_version(version_);
    response->mutable_close()->mutable_square_sums()->Assign(sums.begin(), sums.end());
    return response;
  });
  return absl::OkStatus();
}

absl::Status ShardHost::RunApply(const RendezvousKey& key, double scale) {
  CHECK(closed_.has_value());
  RETURN_IF_ERROR(ApplyStep(*closed_, scale));
  closed_.reset();
  absl::MutexLock lock(&mutex_);
  apply_.Finish(key, [&](std::span<const uint32_t>) {
    auto response = NewResponse();
    response->mutable_apply()->set_step(key.step);
    response->mutable_apply()->set_version(version_);
    return response;
  });
  return absl::OkStatus();
}

absl::Status ShardHost::ApplyStep(const ClosedStep& closed, double scale) {
  shards_->Apply(closed.learning_rate, scale);
  if (closed.cut) RETURN_IF_ERROR(WriteCut(closed.step + 1));
  std::vector<v1::ShardStatus> status = shards_->Status();
  std::vector<PendingPull> pulls;
  {
    absl::MutexLock lock(&mutex_);
    version_ = closed.step + 1;
    applying_.reset();
    status_ = std::move(status);
    pulls.swap(pending_pulls_);
    forward_rows_.clear();
    // Who did not get the last answer of this step may still ask for it.
    const auto over = [&](const RendezvousKey& key) {
      return key.mode == v1::MODE_TRAIN && key.step <= closed.step;
    };
    const auto older = [&](const RendezvousKey& key) { return key.step < closed.step; };
    forward_.Forget(over);
    backward_.Forget(over);
    close_.Forget(older);
    apply_.Forget(older);
  }
  for (const PendingPull& pending : pulls) AnswerPull(pending.pull, *pending.sink);
  return absl::OkStatus();
}

absl::Status ShardHost::WriteCut(uint64_t version) {
  Cut cut;
  cut.folder =
      absl::StrCat(options_.state.checkpoint_dir(), "/", StepFolderName(version));
  cut.job = job_.name();
  cut.step = version;
  RETURN_IF_ERROR(MakeDirs(cut.folder));
  ASSIGN_OR_RETURN(const std::vector<v1::ShardFile> files, shards_->Write(cut));
  for (const v1::ShardFile& file : files) {
    RETURN_IF_ERROR(options_.events.shard_written(version, file));
  }
  return absl::OkStatus();
}

void ShardHost::AnswerPull(const v1::PullRequest& pull, ReplySink& sink) {
  auto response = NewResponse();
  response->mutable_pull()->set_version(pull.version());
  for (const std::string& shard : pull.shards()) {
    v1::ShardContent* content = response->mutable_pull()->add_shards();
    content->set_shard(shard);
    *content->mutable_content() = shards_->Content(shard);
  }
  sink.Send(std::move(response));
}

std::optional<Waiting> ShardHost::Oldest() const {
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

void ShardHost::OnIdle() {
  std::optional<Waiting> oldest;
  {
    absl::MutexLock lock(&mutex_);
    if (!failure_.ok()) return;
    oldest = Oldest();
  }
  const absl::Time now = absl::Now();
  std::string waiting_for;
  if (oldest.has_value()) {
    waiting_for = Describe(*oldest, now, worker_of_);
    if (now - oldest->since > options_.rendezvous_timeout) {
      Fail(absl::DeadlineExceededError(absl::StrCat("waited ", waiting_for)));
      return;
    }
    waiting_for = absl::StrCat("waiting ", waiting_for);
  }
  options_.events.idle(waiting_for, engine_.Times());
}

void ShardHost::Fail(const absl::Status& cause) {
  const absl::Status named = Annotate(cause, options_.server);
  {
    absl::MutexLock lock(&mutex_);
    if (!failure_.ok()) return;
    failure_ = named;
  }
  LOG(ERROR) << named.message();
  options_.events.failed(named);
}

// ---------------------------------------------------------------- what others may ask

v1::GetServerStatusResponse ShardHost::Status() const {
  v1::GetServerStatusResponse response;
  response.set_server(options_.server);
  response.set_generation(generation_);
  *response.mutable_times() = engine_.Times();
  const absl::Time now = absl::Now();
  absl::MutexLock lock(&mutex_);
  for (const v1::ShardStatus& status : status_) {
    *response.add_shards() = status;
    response.mutable_shards(response.shards_size() - 1)->set_version(version_);
  }
  if (const std::optional<Waiting> oldest = Oldest()) {
    response.set_waiting_for(
        absl::StrCat("waiting ", Describe(*oldest, now, worker_of_)));
    response.set_waiting_seconds(absl::ToDoubleSeconds(now - oldest->since));
  }
  return response;
}

absl::StatusOr<v1::GetTensorDigestsResponse> ShardHost::Digests() {
  struct Answer {
    absl::StatusOr<v1::GetTensorDigestsResponse> response =
        absl::UnavailableError("the server is leaving the generation");
    absl::Notification done;
  };
  const auto answer = std::make_shared<Answer>();
  // Tells the waiter also if the engine drops the task.
  auto done = std::make_shared<OnDestruction>([answer] { answer->done.Notify(); });
  engine_.Post([this, answer, done = std::move(done)] {
    v1::GetTensorDigestsResponse response;
    {
      absl::MutexLock lock(&mutex_);
      response.set_version(version_);
    }
    for (v1::TensorDigest& digest : shards_->Digests()) {
      *response.add_tensors() = std::move(digest);
    }
    answer->response = std::move(response);
  });
  answer->done.WaitForNotification();
  return answer->response;
}

}  // namespace moe
