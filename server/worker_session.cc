#include "server/worker_session.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/net/checksum.h"
#include "server/refusal.h"

namespace moe {

absl::Status WorkerSession::CheckHello(const v1::HelloRequest& hello) const {
  if (closed_) return absl::UnavailableError("the generation is over");
  if (hello.incarnation() != incarnation_) {
    return Untimely(worker_, " is incarnation ", hello.incarnation(),
                    ", but the generation began with incarnation ", incarnation_,
                    "; another one takes part from the next generation on");
  }
  if (hello.sent() < received_) {
    return Untimely(worker_, " knows of ", hello.sent(), " messages that it sent, but ",
                    received_, " came");
  }
  if (attached_ == 0 && hello.sent() > 0) {
    return absl::UnavailableError(absl::StrCat("knows nothing of the ", hello.sent(),
                                               " messages that ", worker_, " has sent"));
  }
  return absl::OkStatus();
}

absl::Status WorkerSession::Attach(const v1::HelloRequest& hello, Stream stream,
                                   v1::ExchangeResponse welcome,
                                   absl::Duration patience) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckHello(hello));
  const uint64_t mine = ++wanted_;
  if (stream_.replies != nullptr) stream_.cancel();
  const auto free = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return stream_.replies == nullptr || wanted_ != mine || closed_;
  };
  mutex_.AwaitWithTimeout(absl::Condition(&free), patience);
  if (wanted_ != mine || stream_.replies != nullptr) {
    return absl::UnavailableError(absl::StrCat(
        wanted_ != mine ? "a newer stream of " : "the stream before this one of ",
        worker_, wanted_ != mine ? " has come" : " doesn't end"));
  }
  // It has taken messages meanwhile.
  RETURN_IF_ERROR(CheckHello(hello));
  ++attached_;
  stream_ = std::move(stream);
  welcome.mutable_hello()->set_received(received_);
  Seal(&welcome);
  stream_.replies->Send(std::make_shared<const v1::ExchangeResponse>(std::move(welcome)));
  return absl::OkStatus();
}

uint64_t WorkerSession::Detach() {
  absl::MutexLock lock(&mutex_);
  stream_ = {};
  // They come again.
  early_.clear();
  early_bytes_ = 0;
  return attached_;
}

bool WorkerSession::AwaitNext(uint64_t last, absl::Duration patience) {
  absl::MutexLock lock(&mutex_);
  const auto decided = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return attached_ != last || closed_;
  };
  mutex_.AwaitWithTimeout(absl::Condition(&decided), patience);
  return attached_ != last;
}

void WorkerSession::Close() {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
}

absl::Status WorkerSession::Put(
    Received<v1::ExchangeRequest> request,
    const std::function<absl::Status(Received<v1::ExchangeRequest>, bool again)>& take) {
  const uint64_t sequence = request.message.sequence();
  bool again = false;
  {
    absl::MutexLock lock(&mutex_);
    if (sequence == 0) return Bad(worker_, " sent a message without a sequence");
    if (sequence > received_ + kAhead) {
      return Untimely(worker_, " sent message ", sequence, " before message ",
                      received_ + 1, ", of which at most ", kAhead - 1, " may be ahead");
    }
    if (sequence > received_ + 1) {
      if (early_.contains(sequence)) return absl::OkStatus();
      const size_t bytes = request.size();
      if (early_bytes_ + bytes > kAheadBytes) {
        return absl::DataLossError(absl::StrCat("more than ", kAheadBytes >> 20,
                                                " MiB came before message ",
                                                received_ + 1, ", which is missing"));
      }
      early_bytes_ += bytes;
      early_.emplace(sequence, std::move(request));
      return absl::OkStatus();
    }
    again = sequence <= received_;
  }
  RETURN_IF_ERROR(take(std::move(request), again));
  while (!again) {
    {
      absl::MutexLock lock(&mutex_);
      ++received_;
      auto next = early_.extract(received_ + 1);
      if (next.empty()) break;
      request = std::move(next.mapped());
      early_bytes_ -= request.size();
    }
    RETURN_IF_ERROR(take(std::move(request), /*again=*/false));
  }
  return absl::OkStatus();
}

void WorkerSession::Send(std::shared_ptr<const v1::ExchangeResponse> response) {
  absl::MutexLock lock(&mutex_);
  if (stream_.replies != nullptr) stream_.replies->Send(std::move(response));
}

}  // namespace moe
