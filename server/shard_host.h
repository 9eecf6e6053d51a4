// One generation of a server: takes what workers send, joins it over the replicas, has
// the engine do the work, and answers.
//
// The order of a message's life: Handle (any thread) checks it against the conversation's
// state, decodes it, checks again and adds it to its rendezvous; the rendezvous' last
// part posts the work to the engine; the engine answers every sender. What is refused has
// changed nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/expert.pb.h"
#include "proto/moe/v1/status.pb.h"
#include "server/engine.h"
#include "server/frames.h"
#include "server/rendezvous.h"
#include "server/shard_set.h"

namespace moe {

class ShardHost {
 public:
  // Called by the engine's thread; must be set.
  struct Events {
    // A shard's file of a cut is on disk.
    std::function<absl::Status(uint64_t step, const v1::ShardFile& file)> shard_written;
    // The job can't go on; once.
    std::function<void(const absl::Status& cause)> failed;
    // A few times a second while the engine is idle. waiting_for: empty, or whom it waits
    // for.
    std::function<void(const std::string& waiting_for, const v1::MemberTimes& times)>
        idle;
  };
  struct Options {
    // Member id of this server.
    std::string server;
    // From phase LOADING on.
    v1::ClusterState state;
    // From a rendezvous' first part to its last.
    absl::Duration rendezvous_timeout;
    Events events;
  };

  // Creates or restores the shards. The backend outlives the host.
  static absl::StatusOr<std::unique_ptr<ShardHost>> Load(Backend& backend,
                                                         Options options);
  ~ShardHost();

  uint64_t generation() const { return generation_; }
  // Whether any replica is this member's.
  bool IsWorker(const std::string& member) const;

  // A message of `worker` after its Hello; `sink` gets the answer, now or later. An error
  // says what is wrong with the message, and ends the conversation with its sender. May
  // block for as long as it takes to copy and check the message.
  absl::Status Handle(const std::string& worker, v1::ExchangeRequest request,
                      const std::shared_ptr<ReplySink>& sink);

  void AddMoving(absl::Duration duration) { engine_.AddMoving(duration); }
  v1::GetServerStatusResponse Status() const;
  // Waits until the engine is between two tasks.
  absl::StatusOr<v1::GetTensorDigestsResponse> Digests();

 private:
  using Forwards = Rendezvous<ForwardInput>;
  using Backwards = Rendezvous<BackwardInput>;
  using Closes = Rendezvous<CloseInput>;
  using Applies = Rendezvous<v1::ApplyRequest>;
  struct PendingPull {
    absl::Time since;
    v1::PullRequest pull;
    std::shared_ptr<ReplySink> sink;
  };
  // A step that is closed and awaits its ApplyRequests.
  struct ClosedStep {
    uint64_t step = 0;
    double learning_rate = 0;
    bool cut = false;
  };

  ShardHost(Backend& backend, Options options, std::unique_ptr<ShardSet> shards);

  // ---- any thread
  absl::Status HandlePull(v1::PullRequest pull, const std::shared_ptr<ReplySink>& sink);
  absl::Status HandleForward(const std::string& worker, const v1::ForwardRequest& request,
                             const std::shared_ptr<ReplySink>& sink);
  absl::Status HandleBackward(const std::string& worker,
                              const v1::BackwardRequest& request,
                              const std::shared_ptr<ReplySink>& sink);
  absl::Status HandleClose(const std::string& worker, v1::CloseRequest request,
                           const std::shared_ptr<ReplySink>& sink);
  absl::Status HandleApply(const std::string& worker, const v1::ApplyRequest& request,
                           const std::shared_ptr<ReplySink>& sink);
  // That the replicas exist, ascend, and are the worker's.
  absl::Status CheckReplicas(const std::string& worker,
                             std::span<const uint32_t> replicas) const;
  // That the frame's layer is here and its wave and mode exist.
  absl::StatusOr<const LayerShape*> CheckFrame(const v1::FrameId& id) const;
  absl::Status CheckStep(uint64_t step) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckForwardOrder(const RendezvousKey& key,
                                 std::span<const uint32_t> replicas) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckBackwardOrder(const RendezvousKey& key,
                                  std::span<const uint32_t> replicas) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckCloseOrder(uint64_t step, std::span<const uint32_t> replicas) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status failure() const ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<Waiting> Oldest() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // ---- the engine's thread
  void Post(std::function<absl::Status()> task);
  absl::Status RunForward(const RendezvousKey& key, const Forwards::Parts& parts);
  absl::Status RunBackward(const RendezvousKey& key, const Backwards::Parts& parts);
  absl::Status RunClose(const RendezvousKey& key, const Closes::Parts& parts);
  absl::Status RunApply(const RendezvousKey& key, double scale);
  absl::Status ApplyStep(const ClosedStep& closed, double scale);
  absl::Status WriteCut(uint64_t version);
  void AnswerPull(const v1::PullRequest& pull, ReplySink& sink);
  void OnIdle();
  void Fail(const absl::Status& cause);

  std::shared_ptr<v1::ExchangeResponse> NewResponse() const;

  // Constant after construction.
  const Options options_;
  Backend& backend_;
  const v1::Job& job_;
  const uint64_t generation_;
  const uint32_t replicas_;
  const uint32_t waves_;
  const std::vector<std::string> worker_of_;  // [R]

  // The engine's thread, but for what ShardSet says is constant.
  const std::unique_ptr<ShardSet> shards_;
  std::optional<ClosedStep> closed_;

  mutable absl::Mutex mutex_;
  // Steps taken.
  uint64_t version_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  Forwards forward_ ABSL_GUARDED_BY(mutex_);
  Backwards backward_ ABSL_GUARDED_BY(mutex_);
  Closes close_ ABSL_GUARDED_BY(mutex_);
  Applies apply_ ABSL_GUARDED_BY(mutex_);
  // Rows of the forward frames of the step in progress, [R] each.
  std::map<RendezvousKey, std::vector<int64_t>> forward_rows_ ABSL_GUARDED_BY(mutex_);
  // The step whose square sums are out.
  std::optional<uint64_t> applying_ ABSL_GUARDED_BY(mutex_);
  // Evaluations before this one are over.
  uint64_t evaluation_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<PendingPull> pending_pulls_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::ShardStatus> status_ ABSL_GUARDED_BY(mutex_);

  // Last, so that its thread ends before what it uses.
  Engine engine_;
};

}  // namespace moe
