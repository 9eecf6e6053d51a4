// The sending half of one Exchange stream: a queue and a thread that empties it, so that
// whoever answers a worker never waits for its network.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <thread>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/net/exchange.h"
#include "proto/moe/v1/expert.pb.h"
#include "server/reply_sink.h"

namespace moe {

class ReplyStream : public ReplySink {
 public:
  using Stream = ExchangeServerStream;

  // stream must live until Finish. on_written: how long a write took; the stream's own
  // thread.
  ReplyStream(Stream* stream, std::function<void(absl::Duration)> on_written);
  ~ReplyStream() override;

  // How many replies may wait to be written; any number before. A peer that does as the protocol says has
  // no more to come than one step's.
  void Limit(size_t most_waiting);
  // RESOURCE_EXHAUSTED once there were more: then the peer asks and doesn't read, and those that waited,
  // and all to come but a Failure, are dropped.
  absl::Status health() const;

  // No effect after Finish.
  void Send(std::shared_ptr<const v1::ExchangeResponse> response) override;
  // Whether all that is queued is written, or the stream is broken, within that time.
  bool Drain(absl::Duration patience) const;
  // Writes what is queued, unless the stream is broken, and ends the thread.
  void Finish();

 private:
  void Run();

  Stream* const stream_;
  const std::function<void(absl::Duration)> on_written_;
  mutable absl::Mutex mutex_;
  size_t most_waiting_ ABSL_GUARDED_BY(mutex_) = std::numeric_limits<size_t>::max();
  bool overrun_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<std::shared_ptr<const v1::ExchangeResponse>> queue_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace moe
