// The receiving half of a generation: checks what workers send against the state of the
// conversation, decodes it, and joins it over the replicas. What is refused has changed
// nothing.
//
// Thread-safe. Handle is called by those who read from workers, the rest by the engine.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
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
#include "common/net/received.h"
#include "proto/moe/v1/expert.pb.h"
#include "proto/moe/v1/parameter.pb.h"
#include "server/conversation.h"
#include "server/rendezvous.h"
#include "server/reply_sink.h"
#include "server/shard_set.h"
#include "server/table_frames.h"
#include "server/trace_writer.h"
#include "server/unanswered.h"

namespace moe {

class Inbox {
 public:
  using Options = Conversation::Options;
  using Forwards = Conversation::Forwards;
  using Backwards = Conversation::Backwards;
  using Closes = Conversation::Closes;

  // A worker's part of an evaluation's softmax.
  struct Score {
    std::string worker;
    // Of its message; whether that came before.
    uint64_t sequence = 0;
    bool again = false;
    uint64_t batch = 0;
    uint32_t wave = 0;
    uint32_t part = 0;
    uint64_t version = 0;
    std::vector<std::shared_ptr<const ScoreInput>> inputs;
  };

  // What a worker wants of some shards, checked.
  struct Pull {
    struct Rows {
      std::string shard;
      std::vector<int32_t> index;
    };
    std::string worker;
    // Of its message; whether that came before.
    uint64_t sequence = 0;
    bool again = false;
    uint64_t version = 0;
    std::vector<std::string> shards;
    std::vector<Rows> rows;  // of table shards
    bool evaluation = false;
  };

  // Gets what is complete, in the order in which it became so; only puts it in a queue.
  class Work {
   public:
    virtual ~Work() = default;
    virtual void Forward(const RendezvousKey& key, Forwards::Parts parts) = 0;
    virtual void Backward(const RendezvousKey& key, Backwards::Parts parts) = 0;
    virtual void Close(const RendezvousKey& key, Closes::Parts parts) = 0;
    virtual void Apply(const RendezvousKey& key, double scale) = 0;
    // The shards have the version that is asked for.
    virtual void Pull(Inbox::Pull pull, std::shared_ptr<ReplySink> sink) = 0;
    virtual void Score(Inbox::Score score, std::shared_ptr<ReplySink> sink) = 0;
  };

  // What is passed by reference or pointer outlives the inbox; of the shards it uses what is
  // constant. trace: may be null.
  Inbox(Backend& backend, const ShardSet& shards, Work& work, Options options,
        TraceWriter* trace);

  // Whether any replica is this member's.
  bool IsWorker(const std::string& member) const;
  // A message of `worker` after its Hello; `sink` gets the answer, now or later. again: it was handled
  // before, and is answered once more if anybody may still wait for that, else ignored. An error
  // says what is wrong with the message. Takes as long as copying and checking does.
  absl::Status Handle(const std::string& worker, Received<v1::ExchangeRequest> request,
                      const std::shared_ptr<ReplySink>& sink, bool again = false);

  // ---- what the work came to; answers those who sent its parts
  // replies: [R].
  void FinishForward(const RendezvousKey& key, std::vector<v1::ForwardReply> replies);
  void FinishBackward(const RendezvousKey& key, std::vector<v1::BackwardReply> replies);
  // sums: empty unless an ApplyRequest is awaited.
  void FinishClose(const RendezvousKey& key, const std::vector<v1::TensorSquareSum>& sums,
                   bool cut);
  void FinishApply(const RendezvousKey& key);
  // Before their answers are sent, on which their workers may send others.
  void FinishPull(const Pull& pull);
  void FinishScore(const Score& score);
  // The closed step's square sums are formed; from here on its scale is welcome.
  void AwaitScale(uint64_t step);
  // Every shard has applied the step in progress: it is over, and the version is the next.
  void Advance();

  uint64_t version() const;
  // FAILED_PRECONDITION if it isn't the present one.
  absl::Status CheckVersion(uint64_t version) const;
  // What has waited longest for parts that are missing.
  std::optional<Waiting> Oldest() const;
  std::shared_ptr<v1::ExchangeResponse> NewResponse() const;

 private:
  struct PendingPull {
    absl::Time since;
    Pull pull;
    std::shared_ptr<ReplySink> sink;
  };
  template <typename Part>
  using NewParts = Conversation::NewParts<Part>;

  // Their pull and score are made with the sender and the place of the message.
  absl::Status HandlePull(Pull pull, const v1::PullRequest& request,
                          const std::shared_ptr<ReplySink>& sink);
  absl::Status HandleScore(Score score, const v1::ScoreRequest& request,
                           const std::shared_ptr<ReplySink>& sink);
  absl::Status HandleForward(const std::string& worker, const v1::ForwardRequest& request,
                             const Payloads& payloads,
                             const std::shared_ptr<ReplySink>& sink);
  absl::Status HandleBackward(const std::string& worker,
                              const v1::BackwardRequest& request,
                              const Payloads& payloads,
                              const std::shared_ptr<ReplySink>& sink);
  absl::Status HandleClose(const std::string& worker, v1::CloseRequest request,
                           const std::shared_ptr<ReplySink>& sink);
  absl::Status HandleApply(const std::string& worker, const v1::ApplyRequest& request,
                           const std::shared_ptr<ReplySink>& sink);

  // Whether it was in the rendezvous before; then it is answered if it can be.
  template <typename Part>
  absl::StatusOr<bool> Known(Rendezvous<Part>& rendezvous, const RendezvousKey& key,
                             std::span<const uint32_t> replicas,
                             const std::shared_ptr<ReplySink>& sink)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of a message that was handled before.
  template <typename Part>
  absl::Status AnswerAgain(const std::string& worker,
                           Rendezvous<Part>& (Conversation::*rendezvous)(),
                           const RendezvousKey& key, std::span<const uint32_t> replicas,
                           const std::shared_ptr<ReplySink>& sink)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status HandleAgain(const std::string& worker, const v1::ExchangeRequest& request,
                           const std::shared_ptr<ReplySink>& sink);

  // The way of a message into its rendezvous: unless it came before, `check` (locked) says
  // whether it may come now, `decode` (not locked) makes its parts, one for each replica,
  // `check` says whether it still may, and `settle` (locked) whether the parts agree with
  // the others'. Then it counts, and if it was the last, `complete` (locked) gets all.
  template <typename Part>
  absl::Status Admit(Rendezvous<Part>& (Conversation::*rendezvous)(),
                     const RendezvousKey& key, std::span<const uint32_t> replicas,
                     const std::shared_ptr<ReplySink>& sink,
                     const std::function<absl::Status()>& check,
                     const std::function<absl::StatusOr<NewParts<Part>>()>& decode,
                     const std::function<absl::Status(const NewParts<Part>&)>& settle,
                     const std::function<void(NewParts<Part>)>& complete)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // As those of the conversation.
  absl::Status CheckReplicas(const std::string& worker,
                             std::span<const uint32_t> replicas) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<const LayerShape*> CheckFrame(const v1::FrameId& id) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  Backend& backend_;
  const ShardSet& shards_;
  Work& work_;
  const uint64_t generation_;
  const uint32_t replicas_;
  TraceWriter* const trace_;

  mutable absl::Mutex mutex_;
  Conversation conversation_ ABSL_GUARDED_BY(mutex_);
  std::vector<PendingPull> pending_pulls_ ABSL_GUARDED_BY(mutex_);
  // By worker.
  std::map<std::string, Unanswered> pulls_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Unanswered> scores_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moe
