// One generation of a server: its shards, the inbox for what workers send about them, and
// the engine that does the work.
//
// The way of a message: Handle (any thread) puts it through the inbox; the rendezvous' last
// part queues the work for the engine; the engine's result goes through the inbox to
// everyone who sent a part.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/expert.pb.h"
#include "proto/moe/v1/status.pb.h"
#include "server/cut_writer.h"
#include "server/engine.h"
#include "server/inbox.h"
#include "server/rendezvous.h"
#include "server/reply_sink.h"
#include "server/shard_home.h"
#include "server/shard_pieces.h"
#include "server/shard_set.h"
#include "server/trace_writer.h"

namespace moe {

class ShardHost : private Inbox::Work {
 public:
  // Must be set.
  struct Events {
    // A shard's file of a cut is on disk. Called by the thread that writes it.
    std::function<absl::Status(uint64_t step, const v1::ShardFile& file)> shard_written;
    // The job can't go on; once. The cause doesn't name the server. Called by the engine's thread or
    // the one that writes cuts.
    std::function<void(const absl::Status& cause)> failed;
    // A step waits for the disk; empty: it doesn't any more. Called with locks held: only notes it.
    std::function<void(const std::string& for_what)> waiting;
    // A few times a second while the engine, whose thread calls it, is idle. waiting_for: whom it waits
    // for, and in what; empty if for nobody.
    std::function<void(const std::string& waiting_for, const v1::MemberTimes& times)>
        idle;
  };
  struct Options {
    // Member id of this server, and its incarnation.
    std::string server;
    uint64_t incarnation = 0;
    // From phase LOADING on.
    v1::ClusterState state;
    // From a rendezvous' first part to its last.
    absl::Duration rendezvous_timeout;
    // Outlives the host; null: none.
    TraceWriter* trace = nullptr;
    Events events;
  };

  // With the shards that the stock has for it and, as ShardSet::Load says, others.
  static absl::StatusOr<std::unique_ptr<ShardHost>> Load(std::shared_ptr<ShardHome> home,
                                                         Options options,
                                                         ShardStock& stock);
  ~ShardHost() override;

  uint64_t generation() const { return options_.state.generation(); }
  uint64_t incarnation() const { return options_.incarnation; }
  // Optimizer steps taken; any thread.
  uint64_t version() const { return inbox_.version(); }
  // Whether any replica is this member's.
  bool IsWorker(const std::string& member) const { return inbox_.IsWorker(member); }
  // And whether it is the member's own process that says so.
  bool IsWorker(const std::string& member, uint64_t nonce) const;
  // How many answers a worker may have to come, which reads them: twice those of a step, for it may ask
  // again.
  size_t MostUnread() const;
  // A message of `worker` after its Hello; `sink` gets the answer, now or later. again: it was handled
  // before. An error says what is wrong with the message, and ends the conversation with its
  // sender. May block for as long as it takes to copy and check the message.
  absl::Status Handle(const std::string& worker, Received<v1::ExchangeRequest> request,
                      const std::shared_ptr<ReplySink>& sink, bool again = false);

  // The process that the worker is in this generation.
  void Met(const std::string& worker, uint64_t incarnation);

  void AddMoving(absl::Duration duration) { engine_.AddMoving(duration); }
  v1::GetServerStatusResponse Status() const;
  // Waits for the engine, which makes them shard by shard, between its other tasks. ABORTED: a
  // step was taken meanwhile. cancelled: whether the caller has gone; any thread; may be empty.
  absl::StatusOr<v1::GetTensorDigestsResponse> Digests(
      const std::function<bool()>& cancelled = {});
  // As ReadPieces (shard_pieces.h), between the engine's other tasks. NOT_FOUND if there is no such
  // shard here.
  absl::StatusOr<PieceBatch> ReadPiecesOf(const std::string& shard,
                                          std::span<const uint64_t> have, int64_t first,
                                          size_t bytes);
  // Ends the work, and a cut that is being written; the shards are as the last step left them. Only the
  // destructor may follow.
  ShardStock Release();

 private:
  // A step of which all replicas have closed.
  struct ClosedStep {
    double learning_rate = 0;
    bool cut = false;
  };

  // A score and how far it is. Engine thread only, once it is posted.
  struct ScoreWork {
    Inbox::Score score;
    std::shared_ptr<ReplySink> sink;
    size_t frame = 0;
    size_t shard = 0;
    v1::ScoreResponse response;
  };

  ShardHost(Backend& backend, Options options, std::unique_ptr<ShardSet> shards);

  // ---- Inbox::Work; any thread
  void Forward(const RendezvousKey& key, Inbox::Forwards::Parts parts) override;
  void Backward(const RendezvousKey& key, Inbox::Backwards::Parts parts) override;
  void Close(const RendezvousKey& key, Inbox::Closes::Parts parts) override;
  void Apply(const RendezvousKey& key, double scale) override;
  void Pull(Inbox::Pull pull, std::shared_ptr<ReplySink> sink) override;
  void Score(Inbox::Score score, std::shared_ptr<ReplySink> sink) override;
  void PostScore(std::shared_ptr<ScoreWork> work);
  // A task's error fails the job.
  void Post(std::function<absl::Status()> task);
  // Has the engine run the task and waits for it. UNAVAILABLE if the engine ends before.
  absl::Status RunTask(std::function<absl::Status()> task);
  // Appends the digests of shard `first` and of those after it for which there is time; the next
  // one's number.
  absl::StatusOr<int64_t> DigestFrom(int64_t first,
                                     const std::function<bool()>& cancelled,
                                     v1::GetTensorDigestsResponse* response);
  absl::Status failure() const ABSL_LOCKS_EXCLUDED(mutex_);

  // The place of a frame's rows among those of its mixture in a pass.
  uint32_t BatchOf(const RendezvousKey& key) const {
    return key.call * waves_ + key.wave;
  }

  // ---- the engine's thread
  // For the trace, if there is one: all replicas' parts were joined.
  void NoteApplied(RendezvousKind kind, const RendezvousKey& key);
  absl::Status RunClose(const RendezvousKey& key, const Inbox::Closes::Parts& parts);
  // Applies closed_ with this gradient scale, and begins the cut.
  absl::Status ApplyStep(double scale);
  void BeginCut(uint64_t version);
  void AnswerPull(const Inbox::Pull& pull, ReplySink& sink);
  // One frame by one shard. What other workers want comes before the next.
  void WorkOnScore(const std::shared_ptr<ScoreWork>& work);
  void OnIdle();
  // ---- any thread
  void Fail(const absl::Status& cause);
  // What a step waits for that the writer keeps waiting.
  std::string TheDisk() const;

  const Options options_;
  const std::vector<std::string> worker_of_;  // [R]
  const uint32_t waves_;

  // The engine's thread, but for what ShardSet says is constant.
  const std::unique_ptr<ShardSet> shards_;
  ClosedStep closed_;

  Inbox inbox_;

  mutable absl::Mutex mutex_;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  // As of the last step.
  std::shared_ptr<const std::vector<v1::ShardStatus>> status_ ABSL_GUARDED_BY(mutex_);

  // Last, so that their threads end before what they use.
  CutWriter writer_;
  Engine engine_;
};

}  // namespace moe
