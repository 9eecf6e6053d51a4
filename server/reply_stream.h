// The sending half of one Exchange stream: a queue and a thread that empties it, so that
// whoever answers a worker never waits for its network.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/moe/v1/expert.grpc.pb.h"
#include "server/reply_sink.h"

namespace moe {

class ReplyStream : public ReplySink {
 public:
  using Stream = grpc::ServerReaderWriter<v1::ExchangeResponse, v1::ExchangeRequest>;

  // stream must live until Finish. on_written: how long a write took; the stream's own
  // thread.
  ReplyStream(Stream* stream, std::function<void(absl::Duration)> on_written);
  ~ReplyStream() override;

  // No effect after Finish.
  void Send(std::shared_ptr<const v1::ExchangeResponse> response) override;
  // Writes what is queued, unless the stream is broken, and ends the thread.
  void Finish();

 private:
  void Run();

  Stream* const stream_;
  const std::function<void(absl::Duration)> on_written_;
  absl::Mutex mutex_;
  std::deque<std::shared_ptr<const v1::ExchangeResponse>> queue_ ABSL_GUARDED_BY(mutex_);
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace moe
