#include "server/shard_service.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/base/protocol.h"
#include "common/base/status_macros.h"
#include "common/net/grpc_status.h"
#include "glog/logging.h"

namespace moe {

grpc::Status ShardService::Exchange(grpc::ServerContext* context,
                                    ReplyStream::Stream* stream) {
  const auto replies = std::make_shared<ReplyStream>(stream, [this](absl::Duration took) {
    if (const std::shared_ptr<ShardHost> host = options_.host()) host->AddMoving(took);
  });
  const absl::Status status = Converse(context, stream, replies);
  replies->Finish();
  return ToGrpcStatus(status);
}

absl::StatusOr<std::string> ShardService::Greet(
    const v1::ExchangeRequest& request, const std::shared_ptr<ShardHost>& host) const {
  if (!request.has_hello()) {
    return absl::FailedPreconditionError("the first message must be Hello");
  }
  const std::string& worker = request.hello().member();
  if (request.hello().protocol_version() != kProtocolVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        worker, " speaks protocol version ", request.hello().protocol_version(),
        "; this server speaks ", kProtocolVersion));
  }
  if (host == nullptr) {
    return absl::UnavailableError(absl::StrCat(options_.server, " has no shards yet"));
  }
  if (request.generation() != host->generation()) {
    return absl::FailedPreconditionError(
        absl::StrCat(worker, " is in generation ", request.generation(),
                     "; the current one is ", host->generation()));
  }
  if (!host->IsWorker(worker)) {
    return absl::PermissionDeniedError(
        absl::StrCat("\"", worker, "\" has no replica of this job"));
  }
  return worker;
}

absl::Status ShardService::Converse(grpc::ServerContext* context,
                                    ReplyStream::Stream* stream,
                                    const std::shared_ptr<ReplyStream>& replies) {
  v1::ExchangeRequest request;
  if (!stream->Read(&request)) return absl::OkStatus();
  // Last of all, when the host isn't held any more.
  const absl::Cleanup end = [&] {
    absl::MutexLock lock(&mutex_);
    conversations_.erase(replies.get());
  };
  const std::shared_ptr<ShardHost> host = options_.host();
  const uint64_t generation = host == nullptr ? 0 : host->generation();
  const absl::StatusOr<std::string> worker = Greet(request, host);
  absl::Status begun = worker.status();
  if (begun.ok()) begun = Begin({generation, context, replies});
  if (!begun.ok()) {
    replies->Send(FailureResponse(generation, begun));
    return begun;
  }
  auto hello = std::make_shared<v1::ExchangeResponse>();
  hello->set_generation(generation);
  hello->mutable_hello()->set_server(options_.server);
  replies->Send(std::move(hello));

  bool stale = false;
  absl::Status status = Read(*worker, *host, stream, replies, &stale);
  if (!status.ok()) {
    LOG(WARNING) << "refused: " << status.message();
    replies->Send(FailureResponse(generation, status));
  } else if (context->IsCancelled()) {
    status = absl::UnavailableError(absl::StrCat(
        "the stream of ", *worker, " broke (it was killed, crashed, or was cut off)"));
  }
  bool over = false;
  {
    absl::MutexLock lock(&mutex_);
    over = !Over(generation).ok();
  }
  if (!status.ok() && !stale && !over) options_.on_lost(generation, status);
  return status;
}

absl::Status ShardService::Begin(const Conversation& conversation) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(Over(conversation.generation));
  conversations_[conversation.replies.get()] = conversation;
  return absl::OkStatus();
}

absl::Status ShardService::Over(uint64_t generation) const {
  return generation <= over_generation_ ? over_cause_ : absl::OkStatus();
}

absl::Status ShardService::Read(const std::string& worker, ShardHost& host,
                                ReplyStream::Stream* stream,
                                const std::shared_ptr<ReplyStream>& replies,
                                bool* stale) {
  v1::ExchangeRequest request;
  while (stream->Read(&request)) {
    *stale = request.generation() != host.generation();
    RETURN_IF_ERROR(host.Handle(worker, std::move(request), replies));
    request = v1::ExchangeRequest();
  }
  return absl::OkStatus();
}

void ShardService::GiveUp(uint64_t generation, const absl::Status& cause) {
  absl::MutexLock lock(&mutex_);
  if (generation <= over_generation_) return;
  for (const auto& [stream, conversation] : conversations_) {
    if (conversation.generation > generation) continue;
    conversation.replies->Send(FailureResponse(conversation.generation, cause));
  }
  over_generation_ = generation;
  over_cause_ = cause;
}

void ShardService::Open(uint64_t generation) {
  absl::MutexLock lock(&mutex_);
  over_generation_ = std::min(over_generation_, generation - 1);
}

void ShardService::Cut(uint64_t generation, const absl::Status& cause) {
  GiveUp(generation, cause);
  absl::MutexLock lock(&mutex_);
  for (const auto& [stream, conversation] : conversations_) {
    if (conversation.generation <= generation) conversation.context->TryCancel();
  }
  const auto none = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::none_of(
        conversations_.begin(), conversations_.end(),
        [&](const auto& entry) { return entry.second.generation <= generation; });
  };
  mutex_.Await(absl::Condition(&none));
}

}  // namespace moe
