// What a server knows of its conversation with one worker through a generation, whatever becomes of the
// streams that carry it: how much it has of what the worker sent, and where answers go at present.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/net/received.h"
#include "proto/moe/v1/expert.pb.h"
#include "server/reply_sink.h"

namespace moe {

// Thread-safe, but one stream at a time takes messages.
class WorkerSession : public ReplySink {
 public:
  // What can be done with a stream.
  struct Stream {
    std::shared_ptr<ReplySink> replies;
    // Makes its reader end. Called while it is attached only; doesn't block.
    std::function<void()> cancel;
  };
  // How far ahead of the first message that is missing others may come.
  static constexpr uint64_t kAhead = 256;
  // And their bytes. TCP delivers all in order, so only what lies between brings any early.
  static constexpr size_t kAheadBytes = size_t{64} << 20;

  // incarnation: of the worker's process that begins the conversation.
  WorkerSession(std::string worker, uint64_t incarnation)
      : worker_(std::move(worker)), incarnation_(incarnation) {}

  // Makes this the worker's stream and sends it `welcome`, with what has been received, before anything
  // else. The stream before it is cancelled, and must be detached within `patience`. FAILED_PRECONDITION:
  // the worker isn't the one that began; UNAVAILABLE: this server isn't, or the generation is over.
  absl::Status Attach(const v1::HelloRequest& hello, Stream stream,
                      v1::ExchangeResponse welcome, absl::Duration patience);
  // The attached stream takes no more messages. Which one it was, for AwaitNext.
  uint64_t Detach();
  // Whether another stream than `last` has been attached before `patience` is over. False at once after
  // Close.
  bool AwaitNext(uint64_t last, absl::Duration patience);
  // The generation is over.
  void Close();

  // Gives `take` the message, and those that came too early, in the order in which the worker sent them.
  // again: it has been taken before. DATA_LOSS if too much has come early: all of it has to come again.
  absl::Status Put(
      Received<v1::ExchangeRequest> request,
      const std::function<absl::Status(Received<v1::ExchangeRequest>, bool again)>& take);

  // To the worker's stream. Without one it is dropped: the worker will ask again for what it misses.
  void Send(std::shared_ptr<const v1::ExchangeResponse> response) override;

 private:
  absl::Status CheckHello(const v1::HelloRequest& hello) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const std::string worker_;
  const uint64_t incarnation_;

  absl::Mutex mutex_;
  Stream stream_ ABSL_GUARDED_BY(mutex_);
  // Streams that have been attached, and those that want to be, too.
  uint64_t attached_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t wanted_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  // Sequence of the last message that was taken.
  uint64_t received_ ABSL_GUARDED_BY(mutex_) = 0;
  // Those that came before their turn.
  std::map<uint64_t, Received<v1::ExchangeRequest>> early_ ABSL_GUARDED_BY(mutex_);
  size_t early_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace moe
