// ShardService over gRPC: one Exchange stream for each worker, at a time. gRPC's handler thread
// reads, and so does the copying and checking; a ReplyStream writes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/net/exchange.h"
#include "proto/moe/v1/expert.pb.h"
#include "server/reply_sink.h"
#include "server/reply_stream.h"
#include "server/shard_host.h"
#include "server/worker_session.h"

namespace moe {

class ShardService : public ExchangeService {
 public:
  struct Options {
    // Member id of this server.
    std::string server;
    // The generation at present; null before the first.
    std::function<std::shared_ptr<ShardHost>()> host;
    // A worker's stream broke and no other took it up, or it was closed for what it said,
    // while it was needed. Any thread.
    std::function<void(uint64_t generation, const absl::Status& why)> on_lost;
    // How long a worker whose stream broke has to come back with another.
    absl::Duration reconnect_timeout;
  };
  explicit ShardService(Options options) : options_(std::move(options)) {}

  grpc::Status Exchange(grpc::ServerContext* context,
                        ReplyStream::Stream* stream) override;

  // Tells every worker that the generation, and all before it, are over, and why; new streams of
  // them are refused, lost ones not reported. Any thread: it never holds the host, which joins its
  // engine's thread when it is destroyed.
  void GiveUp(uint64_t generation, const absl::Status& cause);
  // Streams of this generation are welcome, also if one of the same number was before, as of a
  // coordinator without a memory.
  void Open(uint64_t generation);
  // As GiveUp, and cuts the streams, also of workers that don't read them. Returns when none of the
  // threads that served them holds a host any more.
  void Cut(uint64_t generation, const absl::Status& cause);

 private:
  struct Conversation {
    uint64_t generation = 0;
    grpc::ServerContext* context = nullptr;
    std::shared_ptr<ReplyStream> replies;
    std::shared_ptr<WorkerSession> session;
  };

  // That the caller is a worker of the job, before anything of it is read.
  absl::Status CheckCaller(const grpc::ServerContext& context) const;
  // Checks the first message of the caller's stream.
  absl::StatusOr<std::string> Greet(const std::string& caller,
                                    const v1::ExchangeRequest& request,
                                    const std::shared_ptr<ShardHost>& host) const;
  absl::Status Converse(grpc::ServerContext* context, ReplyStream::Stream* stream,
                        const std::shared_ptr<ReplyStream>& replies);
  // Until the stream ends or a message is refused; *stale: because it is of another
  // generation, whose senders this one doesn't need. DATA_LOSS: it was damaged on its way.
  absl::Status Read(const std::string& worker, ShardHost& host,
                    ReplyStream::Stream* stream, const Conversation& conversation,
                    bool* stale);
  // Adds the conversation unless its generation is over, and gives it the worker's session, which begins
  // with its first one.
  absl::Status Begin(const std::string& worker, uint64_t incarnation,
                     Conversation* conversation);
  // OK, or why that generation is over.
  absl::Status Over(uint64_t generation) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  mutable absl::Mutex mutex_;
  // Generations up to this one are over, the last for this cause.
  uint64_t over_generation_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status over_cause_ ABSL_GUARDED_BY(mutex_);
  // By their streams.
  std::map<const ReplyStream*, Conversation> conversations_ ABSL_GUARDED_BY(mutex_);
  // By generation and worker.
  std::map<std::pair<uint64_t, std::string>, std::shared_ptr<WorkerSession>> sessions_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace moe
