#include "server/shard_host.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/base/human.h"
#include "common/base/protocol.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/manifest.h"
#include "common/job/placement.h"
#include "common/net/checksum.h"
#include "glog/logging.h"

namespace moe {
namespace {

// The engine makes digests for so long, and of one shard more, before it turns to the job again.
constexpr absl::Duration kDigestsAtOnce = absl::Milliseconds(200);

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

// What a trace says of the generation.
TracePart TraceHeadOf(const v1::ClusterState& state, const std::string& server,
                      uint64_t incarnation, const ShardSet& shards) {
  const v1::Job& job = state.job();
  TracePart head;
  head.generation = state.generation();
  head.server = server;
  head.incarnation = incarnation;
  head.start_step = state.start_step();
  head.replicas = job.training().replicas();
  head.waves = job.training().waves();
  head.clips = job.optimizer().clip_norm() > 0;
  head.job_shards = state.placement().shards_size();
  head.job = job.name();
  for (const MixtureId& id : shards.mixtures()) {
    head.mixtures.push_back({id.layer, id.mixture, shards.FindMixture(id)->calls});
  }
  const std::set<std::string> here = ShardsOf(state.placement(), server);
  for (const v1::ShardPlacement& placed : state.placement().shards()) {
    if (!here.contains(placed.shard())) continue;
    head.shards.push_back(placed.shard());
    if (!placed.standby().empty()) head.copied.insert(placed.shard());
  }
  return head;
}

// Runs a function when the last copy of what holds it is gone.
class OnDestruction {
 public:
  explicit OnDestruction(std::function<void()> fn) : fn_(std::move(fn)) {}
  ~OnDestruction() { fn_(); }

 private:
  std::function<void()> fn_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ShardHost>> ShardHost::Load(
    std::shared_ptr<ShardHome> home, Options options, ShardStock& stock) {
  Backend& backend = home->backend();
  ASSIGN_OR_RETURN(std::unique_ptr<ShardSet> shards,
                   ShardSet::Load(std::move(home), options.state, options.server, stock));
  return std::unique_ptr<ShardHost>(
      new ShardHost(backend, std::move(options), std::move(shards)));
}

ShardHost::ShardHost(Backend& backend, Options options, std::unique_ptr<ShardSet> shards)
    : options_(std::move(options)),
      worker_of_(WorkersOf(options_.state)),
      waves_(options_.state.job().training().waves()),
      shards_(std::move(shards)),
      inbox_(backend, *shards_, *this,
             {.server = options_.server,
              .generation = options_.state.generation(),
              .version = options_.state.start_step(),
              .waves = waves_,
              .worker_of = worker_of_},
             options_.trace),
      status_(std::make_shared<const std::vector<v1::ShardStatus>>(shards_->Status())),
      writer_(shards_->copies(),
              {.written = options_.events.shard_written,
               .failed = [this](const absl::Status& cause) { Fail(cause); }}),
      engine_([this] { OnIdle(); }) {
  shards_->copies().OnWait(
      [this](bool waits) { options_.events.waiting(waits ? TheDisk() : ""); });
  if (options_.trace == nullptr) return;
  options_.trace->Begin(
      TraceHeadOf(options_.state, options_.server, options_.incarnation, *shards_),
      worker_of_);
}

ShardHost::~ShardHost() {
  // The engine may wait for it.
  writer_.Cancel();
  engine_.Stop();
}

bool ShardHost::IsWorker(const std::string& member, uint64_t nonce) const {
  const auto& replicas = options_.state.replicas();
  return std::any_of(replicas.begin(), replicas.end(), [&](const auto& assignment) {
    return assignment.worker() == member && assignment.nonce() == nonce;
  });
}

absl::Status ShardHost::failure() const {
  absl::MutexLock lock(&mutex_);
  return failure_;
}

absl::Status ShardHost::Handle(const std::string& worker,
                               Received<v1::ExchangeRequest> request,
                               const std::shared_ptr<ReplySink>& sink, bool again) {
  RETURN_IF_ERROR(failure());
  const absl::Time start = absl::Now();
  const absl::Status status = inbox_.Handle(worker, std::move(request), sink, again);
  engine_.AddMoving(absl::Now() - start);
  return status;
}

void ShardHost::Met(const std::string& worker, uint64_t incarnation) {
  if (options_.trace != nullptr) options_.trace->Met(worker, incarnation);
}

size_t ShardHost::MostUnread() const {
  size_t frames = 0;
  for (const MixtureId& id : shards_->mixtures()) {
    frames += size_t{2} * waves_ * shards_->FindMixture(id)->calls;
  }
  // Hello, close and apply; each shard's pull of this version and of the next.
  const size_t others = 3 + 2 * shards_->size() + kMaxScoresUnderWay;
  return 2 * (frames + others);
}

// ---------------------------------------------------------------- what is complete

void ShardHost::Post(std::function<absl::Status()> task) {
  engine_.Post([this, task = std::move(task)] {
    if (!failure().ok()) return;
    const absl::Status status = task();
    if (!status.ok()) Fail(status);
  });
}

void ShardHost::Forward(const RendezvousKey& key, Inbox::Forwards::Parts parts) {
  Post([this, key, parts = std::move(parts)]() -> absl::Status {
    ASSIGN_OR_RETURN(std::vector<v1::ForwardReply> replies,
                     shards_->mixture(key.mixture_id())
                         .Forward(key.mode, key.step, BatchOf(key), parts));
    NoteApplied(RendezvousKind::kForward, key);
    inbox_.FinishForward(key, std::move(replies));
    return absl::OkStatus();
  });
}

void ShardHost::Backward(const RendezvousKey& key, Inbox::Backwards::Parts parts) {
  Post([this, key, parts = std::move(parts)] {
    std::vector<v1::BackwardReply> replies =
        shards_->mixture(key.mixture_id()).Backward(BatchOf(key), parts);
    NoteApplied(RendezvousKind::kBackward, key);
    inbox_.FinishBackward(key, std::move(replies));
    return absl::OkStatus();
  });
}

void ShardHost::Close(const RendezvousKey& key, Inbox::Closes::Parts parts) {
  Post([this, key, parts = std::move(parts)] { return RunClose(key, parts); });
}

void ShardHost::Apply(const RendezvousKey& key, double scale) {
  Post([this, key, scale]() -> absl::Status {
    NoteApplied(RendezvousKind::kApply, key);
    RETURN_IF_ERROR(ApplyStep(scale));
    inbox_.FinishApply(key);
    return absl::OkStatus();
  });
}

void ShardHost::Pull(Inbox::Pull pull, std::shared_ptr<ReplySink> sink) {
  Post([this, pull = std::move(pull), sink = std::move(sink)] {
    AnswerPull(pull, *sink);
    return absl::OkStatus();
  });
}

void ShardHost::Score(Inbox::Score score, std::shared_ptr<ReplySink> sink) {
  const auto work = std::make_shared<ScoreWork>();
  work->score = std::move(score);
  work->sink = std::move(sink);
  PostScore(work);
}

// ---------------------------------------------------------------- the engine

void ShardHost::NoteApplied(RendezvousKind kind, const RendezvousKey& key) {
  if (options_.trace != nullptr) {
    options_.trace->NoteAll(TraceEvent::kApplied, kind, key);
  }
}

absl::Status ShardHost::RunClose(const RendezvousKey& key,
                                 const Inbox::Closes::Parts& parts) {
  RETURN_IF_ERROR(shards_->Close(parts, [&](uint32_t replica, const CloseInput& close) {
    if (options_.trace == nullptr) return;
    options_.trace->NoteParts(TraceEvent::kApplied, key.step, replica, close);
  }));
  NoteApplied(RendezvousKind::kClose, key);
  // A worker that the coordinator didn't reach in time knows of no cut.
  const bool cut =
      std::all_of(parts.begin(), parts.end(), [](const auto& part) { return part->cut; });
  closed_ = {parts[0]->learning_rate, cut};
  std::vector<v1::TensorSquareSum> sums;
  if (options_.state.job().optimizer().clip_norm() > 0) {
    sums = shards_->SquareSums();
    inbox_.AwaitScale(key.step);
  } else {
    RETURN_IF_ERROR(ApplyStep(1));
  }
  inbox_.FinishClose(key, sums, cut);
  return absl::OkStatus();
}

absl::Status ShardHost::ApplyStep(double scale) {
  shards_->Apply(closed_.learning_rate, scale);
  if (options_.trace != nullptr) {
    RETURN_IF_ERROR(options_.trace->StepTaken(inbox_.version()));
  }
  if (closed_.cut) BeginCut(inbox_.version() + 1);
  {
    // Made, and its predecessor dropped, without the lock: messages need it.
    auto status = std::make_shared<const std::vector<v1::ShardStatus>>(shards_->Status());
    absl::MutexLock lock(&mutex_);
    status_.swap(status);
  }
  inbox_.Advance();
  return absl::OkStatus();
}

void ShardHost::BeginCut(uint64_t version) {
  // Workers close a step with a cut when the one before is committed, so that its last file has been
  // reported: this is but for a moment.
  while (true) {
    const uint64_t seen = shards_->copies().progress();
    if (writer_.idle()) break;
    // It is over with the generation.
    if (!shards_->copies().Await(seen)) return;
  }
  Cut cut;
  cut.folder = absl::StrCat(options_.state.checkpoint_dir(), "/",
                            CutFolderName(version, generation()));
  cut.job = options_.state.job().name();
  cut.step = version;
  writer_.Begin(std::move(cut), shards_->BeginCut());
}

std::string ShardHost::TheDisk() const {
  return absl::StrCat(
      "the disk to take ", writer_.UnderWay(),
      ": copies of what steps have changed since may take up no more than ",
      FormatBytes(shards_->copies().limit()), " (--copy_gib)");
}

void ShardHost::AnswerPull(const Inbox::Pull& pull, ReplySink& sink) {
  // A step may have been taken since the pull came.
  if (const absl::Status status = inbox_.CheckVersion(pull.version); !status.ok()) {
    inbox_.FinishPull(pull);
    // Who asked for it twice has its answer.
    if (!pull.again) sink.Send(FailureResponse(generation(), Annotate(status, "pull")));
    return;
  }
  const std::shared_ptr<v1::ExchangeResponse> response = inbox_.NewResponse();
  response->mutable_pull()->set_version(pull.version);
  response->mutable_pull()->set_sequence(pull.sequence);
  const auto add = [&](const std::string& shard, std::string content) {
    v1::ShardContent* added = response->mutable_pull()->add_shards();
    added->set_shard(shard);
    *added->mutable_content() = std::move(content);
  };
  for (const std::string& shard : pull.shards) add(shard, shards_->Content(shard));
  for (const Inbox::Pull::Rows& rows : pull.rows) {
    add(rows.shard, shards_->Rows(rows.shard, rows.index, pull.evaluation));
  }
  inbox_.FinishPull(pull);
  Seal(response.get());
  sink.Send(response);
}

void ShardHost::PostScore(std::shared_ptr<ScoreWork> work) {
  Post([this, work = std::move(work)] {
    WorkOnScore(work);
    return absl::OkStatus();
  });
}

void ShardHost::WorkOnScore(const std::shared_ptr<ScoreWork>& work) {
  const Inbox::Score& score = work->score;
  // A step may have been taken since it came.
  if (const absl::Status status = inbox_.CheckVersion(score.version); !status.ok()) {
    inbox_.FinishScore(score);
    if (!score.again) {
      work->sink->Send(FailureResponse(generation(), Annotate(status, "score")));
    }
    return;
  }
  const std::vector<const TableShard*>& shards = shards_->softmax();
  v1::ScoreResponse& response = work->response;
  if (work->frame < score.inputs.size()) {
    const ScoreInput& input = *score.inputs[work->frame];
    v1::ScoreReply& reply = work->shard == 0 ? *response.add_replies()
                                             : *response.mutable_replies()->rbegin();
    reply.set_replica(input.replica);
    *reply.add_shards() = shards[work->shard]->Score(input.x.view(), input.target);
    if (++work->shard == shards.size()) {
      work->shard = 0;
      ++work->frame;
    }
    if (work->frame < score.inputs.size()) return PostScore(work);
  }
  response.set_batch(score.batch);
  response.set_wave(score.wave);
  response.set_part(score.part);
  const std::shared_ptr<v1::ExchangeResponse> answer = inbox_.NewResponse();
  *answer->mutable_score() = std::move(response);
  inbox_.FinishScore(score);
  Seal(answer.get());
  work->sink->Send(answer);
}

void ShardHost::OnIdle() {
  if (!failure().ok()) return;
  const absl::Time now = absl::Now();
  std::string waiting_for;
  if (const std::optional<Waiting> oldest = inbox_.Oldest()) {
    waiting_for = Describe(*oldest, worker_of_);
    const absl::Duration waited = now - oldest->since;
    if (waited > options_.rendezvous_timeout) {
      Fail(absl::DeadlineExceededError(absl::StrFormat(
          "waited %.1f s for %s", absl::ToDoubleSeconds(waited), waiting_for)));
      return;
    }
  }
  options_.events.idle(waiting_for, engine_.Times());
}

void ShardHost::Fail(const absl::Status& cause) {
  {
    absl::MutexLock lock(&mutex_);
    if (!failure_.ok()) return;
    failure_ = cause;
  }
  LOG(ERROR) << options_.server << ": " << cause.message();
  options_.events.failed(cause);
}

// ---------------------------------------------------------------- what others may ask

v1::GetServerStatusResponse ShardHost::Status() const {
  v1::GetServerStatusResponse response;
  response.set_server(options_.server);
  response.set_generation(generation());
  *response.mutable_times() = engine_.Times();
  const absl::Time now = absl::Now();
  if (const std::optional<Waiting> oldest = inbox_.Oldest()) {
    response.set_waiting_for(Describe(*oldest, worker_of_));
    response.set_waiting_seconds(absl::ToDoubleSeconds(now - oldest->since));
  }
  const CopyBudget& copies = shards_->copies();
  if (const std::optional<absl::Time> since = copies.waiting_since()) {
    response.set_waiting_for(TheDisk());
    response.set_waiting_seconds(absl::ToDoubleSeconds(now - *since));
  }
  response.set_writing(writer_.UnderWay());
  response.set_copied_bytes(copies.used());
  response.set_copy_limit_bytes(copies.limit());
  if (const CapacityTier* tier = shards_->tier()) {
    response.set_disk_bytes(tier->allocated());
    response.set_disk_limit_bytes(tier->options().disk_bytes);
  }
  const uint64_t version = inbox_.version();
  std::shared_ptr<const std::vector<v1::ShardStatus>> shards;
  {
    absl::MutexLock lock(&mutex_);
    shards = status_;
  }
  for (const v1::ShardStatus& status : *shards) {
    v1::ShardStatus* shard = response.add_shards();
    *shard = status;
    shard->set_version(version);
  }
  return response;
}

absl::StatusOr<v1::GetTensorDigestsResponse> ShardHost::Digests(
    const std::function<bool()>& cancelled) {
  v1::GetTensorDigestsResponse response;
  int64_t next = 0;
  do {
    ASSIGN_OR_RETURN(next, DigestFrom(next, cancelled, &response));
  } while (next < shards_->size());
  return response;
}

absl::StatusOr<int64_t> ShardHost::DigestFrom(int64_t first,
                                              const std::function<bool()>& cancelled,
                                              v1::GetTensorDigestsResponse* response) {
  int64_t next = first;
  RETURN_IF_ERROR(RunTask([&]() -> absl::Status {
    const uint64_t version = inbox_.version();
    if (first == 0) response->set_version(version);
    if (version != response->version()) {
      return absl::AbortedError(
          absl::StrCat("a step was taken from version ", response->version(),
                       " while the digests of its shards were made"));
    }
    const absl::Time end = absl::Now() + kDigestsAtOnce;
    do {
      if (cancelled && cancelled()) {
        return absl::CancelledError("nobody waits for the digests any more");
      }
      if (next == shards_->size()) break;
      for (v1::TensorDigest& digest : shards_->Digests(next)) {
        *response->add_tensors() = std::move(digest);
      }
      for (v1::UntouchedTensors& range : shards_->Untouched(next)) {
        *response->add_untouched() = std::move(range);
      }
      ++next;
    } while (absl::Now() < end);
    return absl::OkStatus();
  }));
  return next;
}

absl::StatusOr<PieceBatch> ShardHost::ReadPiecesOf(const std::string& shard,
                                                   std::span<const uint64_t> have,
                                                   int64_t first, size_t bytes) {
  PieceBatch batch;
  RETURN_IF_ERROR(RunTask([&]() -> absl::Status {
    const Shard* const found = shards_->Find(shard);
    if (found == nullptr) {
      return absl::NotFoundError(absl::StrCat(options_.server, " has no ", shard));
    }
    ASSIGN_OR_RETURN(batch, ReadPieces(*found, have, first, bytes));
    return absl::OkStatus();
  }));
  return batch;
}

absl::Status ShardHost::RunTask(std::function<absl::Status()> task) {
  struct Answer {
    absl::Status status = absl::UnavailableError("the server is leaving the generation");
    absl::Notification done;
  };
  const auto answer = std::make_shared<Answer>();
  // Tells the waiter also if the engine drops the task.
  auto done = std::make_shared<OnDestruction>([answer] { answer->done.Notify(); });
  engine_.Post([answer, done = std::move(done), task = std::move(task)] {
    answer->status = task();
  });
  answer->done.WaitForNotification();
  return answer->status;
}

ShardStock ShardHost::Release() {
  // The engine may wait for it.
  writer_.Cancel();
  engine_.Stop();
  // It reads the shards.
  writer_.Stop();
  return shards_->Release();
}

}  // namespace moe
