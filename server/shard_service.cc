#include "server/shard_service.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/base/protocol.h"
#include "common/base/status_macros.h"
#include "common/net/grpc_status.h"
#include "common/net/introduction.h"
#include "glog/logging.h"

namespace moe {
namespace {

// For a peer to read why its stream ends.
constexpr absl::Duration kParting = absl::Seconds(2);

}  // namespace

grpc::Status ShardService::Exchange(grpc::ServerContext* context,
                                    ReplyStream::Stream* stream) {
  if (const absl::Status stranger = CheckCaller(*context); !stranger.ok()) {
    return ToGrpcStatus(stranger);
  }
  const auto replies = std::make_shared<ReplyStream>(stream, [this](absl::Duration took) {
    if (const std::shared_ptr<ShardHost> host = options_.host()) host->AddMoving(took);
  });
  const absl::Status status = Converse(context, stream, replies);
  // A peer that doesn't read doesn't hear why, either.
  if (!status.ok() && !replies->Drain(kParting)) context->TryCancel();
  replies->Finish();
  return ToGrpcStatus(status);
}

absl::Status ShardService::CheckCaller(const grpc::ServerContext& context) const {
  const Introduction caller = IntroductionOf(context);
  const std::shared_ptr<ShardHost> host = options_.host();
  if (host == nullptr) {
    return absl::UnavailableError(absl::StrCat(options_.server, " has no shards yet"));
  }
  if (!host->IsWorker(caller.member)) {
    return absl::PermissionDeniedError(
        absl::StrCat("\"", caller.member, "\" has no replica of this job"));
  }
  if (!host->IsWorker(caller.member, caller.nonce)) {
    return absl::PermissionDeniedError(
        absl::StrCat("the caller isn't ", caller.member, ", as it says"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ShardService::Greet(
    const std::string& caller, const v1::ExchangeRequest& request,
    const std::shared_ptr<ShardHost>& host) const {
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
  if (worker != caller) {
    return absl::PermissionDeniedError(
        absl::StrCat("the caller is ", caller, ", not ", worker));
  }
  return worker;
}

absl::Status ShardService::Converse(grpc::ServerContext* context,
                                    ReplyStream::Stream* stream,
                                    const std::shared_ptr<ReplyStream>& replies) {
  grpc::ByteBuffer bytes;
  if (!stream->Read(&bytes)) return absl::OkStatus();
  // Last of all, when the host isn't held any more.
  const absl::Cleanup end = [&] {
    absl::MutexLock lock(&mutex_);
    conversations_.erase(replies.get());
  };
  std::shared_ptr<ShardHost> host = options_.host();
  const uint64_t generation = host == nullptr ? 0 : host->generation();
  const absl::StatusOr<Received<v1::ExchangeRequest>> received = DecodeRequest(bytes);
  bytes.Clear();
  const v1::ExchangeRequest none;
  const v1::ExchangeRequest& request = received.ok() ? received->message : none;
  const absl::StatusOr<std::string> worker =
      received.ok() ? Greet(IntroductionOf(*context).member, request, host)
                    : absl::UnavailableError(received.status().message());
  absl::Status begun = worker.status();
  Conversation conversation{generation, context, replies, /*session=*/nullptr};
  if (begun.ok()) {
    begun = Begin(*worker, request.hello().incarnation(), &conversation);
  }
  const std::shared_ptr<WorkerSession>& session = conversation.session;
  if (begun.ok()) {
    v1::ExchangeResponse welcome;
    welcome.set_generation(generation);
    welcome.mutable_hello()->set_server(options_.server);
    welcome.mutable_hello()->set_incarnation(host->incarnation());
    begun =
        session->Attach(request.hello(), {replies, [context] { context->TryCancel(); }},
                        std::move(welcome), options_.reconnect_timeout);
  }
  if (!begun.ok()) {
    replies->Send(FailureResponse(generation, begun));
    return begun;
  }
  replies->Limit(host->MostUnread());

  host->Met(*worker, request.hello().incarnation());
  bool stale = false;
  absl::Status status = Read(*worker, *host, stream, conversation, &stale);
  const uint64_t attached = session->Detach();
  host = nullptr;
  // What was damaged on its way comes again on the next stream.
  const bool damaged = absl::IsDataLoss(status);
  if (damaged) context->TryCancel();
  if (!status.ok() && !damaged) {
    LOG(WARNING) << "refused: " << status.message();
    replies->Send(FailureResponse(generation, status));
  } else if (damaged || context->IsCancelled()) {
    LOG(WARNING) << "the stream of " << *worker << " broke" << (damaged ? ": " : "")
                 << status.message() << "; it has "
                 << absl::FormatDuration(options_.reconnect_timeout) << " to take it up";
    if (session->AwaitNext(attached, options_.reconnect_timeout)) {
      return absl::UnavailableError("another stream has taken this one up");
    }
    status = absl::UnavailableError(absl::StrCat(
        "the stream of ", *worker, " broke (it was killed, crashed, or was cut off)",
        options_.reconnect_timeout > absl::ZeroDuration()
            ? absl::StrCat(" and it did not come back within ",
                           absl::FormatDuration(options_.reconnect_timeout))
            : ""));
  }
  bool over = false;
  {
    absl::MutexLock lock(&mutex_);
    over = !Over(generation).ok();
  }
  if (!status.ok() && !stale && !over) options_.on_lost(generation, status);
  return status;
}

absl::Status ShardService::Begin(const std::string& worker, uint64_t incarnation,
                                 Conversation* conversation) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(Over(conversation->generation));
  std::shared_ptr<WorkerSession>& session = sessions_[{conversation->generation, worker}];
  if (session == nullptr) session = std::make_shared<WorkerSession>(worker, incarnation);
  conversation->session = session;
  conversations_[conversation->replies.get()] = *conversation;
  return absl::OkStatus();
}

absl::Status ShardService::Over(uint64_t generation) const {
  return generation <= over_generation_ ? over_cause_ : absl::OkStatus();
}

absl::Status ShardService::Read(const std::string& worker, ShardHost& host,
                                ReplyStream::Stream* stream,
                                const Conversation& conversation, bool* stale) {
  const std::shared_ptr<WorkerSession>& session = conversation.session;
  const auto take = [&](Received<v1::ExchangeRequest> request, bool again) {
    return host.Handle(worker, std::move(request), session, again);
  };
  grpc::ByteBuffer bytes;
  while (stream->Read(&bytes)) {
    ASSIGN_OR_RETURN(Received<v1::ExchangeRequest> request, DecodeRequest(bytes));
    bytes.Clear();
    *stale = request.message.generation() != host.generation();
    RETURN_IF_ERROR(*stale ? take(std::move(request), /*again=*/false)
                           : session->Put(std::move(request), take));
    RETURN_IF_ERROR(Annotate(conversation.replies->health(), worker));
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
  std::erase_if(sessions_, [&](const auto& entry) {
    const auto& [key, session] = entry;
    if (key.first <= generation) session->Close();
    return key.first <= generation;
  });
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
