#include "server/reply_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "glog/logging.h"

namespace moe {

ReplyStream::ReplyStream(Stream* stream, std::function<void(absl::Duration)> on_written)
    : stream_(stream), on_written_(std::move(on_written)), thread_([this] { Run(); }) {}

ReplyStream::~ReplyStream() { CHECK(!thread_.joinable()) << "Finish was not called"; }

void ReplyStream::Limit(size_t most_waiting) {
  absl::MutexLock lock(&mutex_);
  most_waiting_ = most_waiting;
}

absl::Status ReplyStream::health() const {
  absl::MutexLock lock(&mutex_);
  if (!overrun_) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("asks on though more than ", most_waiting_,
                   " answers, more than a step has, wait to be read"));
}

void ReplyStream::Send(std::shared_ptr<const v1::ExchangeResponse> response) {
  absl::MutexLock lock(&mutex_);
  if (finished_) return;
  if (queue_.size() >= most_waiting_) {
    overrun_ = true;
    queue_.clear();
  }
  if (!overrun_ || response->has_failure()) queue_.push_back(std::move(response));
}

bool ReplyStream::Drain(absl::Duration patience) const {
  absl::MutexLock lock(&mutex_);
  const auto drained = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return queue_.empty() && !writing_;
  };
  return mutex_.AwaitWithTimeout(absl::Condition(&drained), patience);
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
      writing_ = false;
      const auto ready = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return finished_ || !queue_.empty();
      };
      mutex_.Await(absl::Condition(&ready));
      if (queue_.empty()) return;
      response = std::move(queue_.front());
      queue_.pop_front();
      writing_ = true;
    }
    if (broken) continue;
    const absl::Time start = absl::Now();
    broken = !stream_->Write(Encode(std::move(response)));
    on_written_(absl::Now() - start);
  }
}

}  // namespace moe
