#include "server/reply_stream.h"

#include <utility>

#include "absl/time/clock.h"
#include "glog/logging.h"

namespace moe {

ReplyStream::ReplyStream(Stream* stream, std::function<void(absl::Duration)> on_written)
    : stream_(stream), on_written_(std::move(on_written)), thread_([this] { Run(); }) {}

ReplyStream::~ReplyStream() { CHECK(!thread_.joinable()) << "Finish was not called"; }

void ReplyStream::Send(std::shared_ptr<const v1::ExchangeResponse> response) {
  absl::MutexLock lock(&mutex_);
  if (!finished_) queue_.push_back(std::move(response));
}

void ReplyStream::Finish() {
  {
    absl::MutexLock lock(&mutex_);
    finished_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void ReplyStream::Run() {
  bool broken = false;
  while (true) {
    std::shared_ptr<const v1::ExchangeResponse> response;
    {
      absl::MutexLock lock(&mutex_);
      const auto ready = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return finished_ || !queue_.empty();
      };
      mutex_.Await(absl::Condition(&ready));
      if (queue_.empty()) return;
      response = std::move(queue_.front());
      queue_.pop_front();
    }
    if (broken) continue;
    const absl::Time start = absl::Now();
    broken = !stream_->Write(*response);
    on_written_(absl::Now() - start);
  }
}

}  // namespace moe
