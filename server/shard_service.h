// ShardService over gRPC: one Exchange stream for each worker. gRPC's handler thread
// reads, and so does the copying and checking; a ReplyStream writes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "proto/moe/v1/expert.grpc.pb.h"
#include "server/reply_sink.h"
#include "server/reply_stream.h"
#include "server/shard_host.h"

namespace moe {

class ShardService : public v1::ShardService::Service {
 public:
  struct Options {
    // Member id of this server.
    std::string server;
    // The generation at present; null before the first.
    std::function<std::shared_ptr<ShardHost>()> host;
    // A worker's stream broke, or was closed for what it said, while it was needed. Any
    // thread.
    std::function<void(const std::string& worker, const absl::Status& why)> on_lost;
  };
  explicit ShardService(Options options) : options_(std::move(options)) {}

  grpc::Status Exchange(grpc::ServerContext* context,
                        ReplyStream::Stream* stream) override;

  // Tells every worker that it's over, and why; new streams are refused, lost ones not
  // reported. Any thread: it never holds the host, which joins its engine's thread when
  // it is destroyed.
  void GiveUp(const absl::Status& cause);

 private:
  // Checks the stream's first message.
  absl::StatusOr<std::string> Greet(const v1::ExchangeRequest& request,
                                    const std::shared_ptr<ShardHost>& host) const;
  absl::Status Converse(grpc::ServerContext* context, ReplyStream::Stream* stream,
                        const std::shared_ptr<ReplyStream>& replies);
  // Until the stream ends or a message is refused; *stale: because it is of another
  // generation, whose senders this one doesn't need.
  absl::Status Read(const std::string& worker, ShardHost& host,
                    ReplyStream::Stream* stream,
                    const std::shared_ptr<ReplyStream>& replies, bool* stale);
  absl::Status over() const;

  const Options options_;
  mutable absl::Mutex mutex_;
  absl::Status over_ ABSL_GUARDED_BY(mutex_);
  // With the generations that they greeted.
  std::map<std::shared_ptr<ReplyStream>, uint64_t> streams_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moe
