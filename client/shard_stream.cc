#include "client/shard_stream.h"

#include <grpcpp/grpcpp.h>

#include <deque>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "common/base/protocol.h"
#include "common/base/status_macros.h"
#include "common/job/mixtures.h"
#include "common/net/channel.h"
#include "common/net/connection_check.h"
#include "common/net/grpc_status.h"
#include "proto/moe/v1/expert.grpc.pb.h"

namespace moe {
namespace {

using Case = v1::ExchangeRequest;

// How long a destructor waits for the server to end its half of the stream.
constexpr absl::Duration kGoodbye = absl::Seconds(2);

class GrpcShardStream final : public ShardStream {
 public:
  explicit GrpcShardStream(const ShardStreamOptions& options)
      : options_(options),
        peer_(absl::StrCat(options.server, " at ", options.address)),
        stub_(v1::ShardService::NewStub(
            MakeChannel(options.address, options.tls, Role::kServer))),
        stream_(stub_->Exchange(&context_)),
        writer_([this] { Write(); }),
        reader_([this] { Read(); }) {}

  ~GrpcShardStream() override {
    {
      absl::MutexLock lock(&mutex_);
      closing_ = true;
      const auto over = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return !broken_.ok() || !cancelled_.ok();
      };
      mutex_.AwaitWithTimeout(absl::Condition(&over), kGoodbye);
    }
    context_.TryCancel();
    reader_.join();
  }

  const std::string& peer() const override { return peer_; }

  absl::Status Send(v1::ExchangeRequest request) override {
    request.set_generation(options_.generation);
    ExchangeKey key = KeyOf(request);
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(cancelled_);
    RETURN_IF_ERROR(broken_);
    expected_.insert(std::move(key));
    requests_.push_back(std::move(request));
    return absl::OkStatus();
  }

  absl::StatusOr<v1::ExchangeResponse> Await(const ExchangeKey& key,
                                             absl::Time deadline) override {
    const absl::Duration patience = deadline - absl::Now();
    absl::MutexLock lock(&mutex_);
    const auto ready = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return !cancelled_.ok() || !broken_.ok() || responses_.contains(key);
    };
    mutex_.AwaitWithDeadline(absl::Condition(&ready), deadline);
    RETURN_IF_ERROR(cancelled_);
    // What came before the stream broke is as good as ever.
    if (auto response = responses_.extract(key)) return std::move(response.mapped());
    RETURN_IF_ERROR(broken_);
    return absl::DeadlineExceededError(absl::StrFormat(
        "%s did not answer %s within %s", peer_, Describe(key),
        absl::FormatDuration(
            absl::Floor(patience + absl::Milliseconds(50), absl::Milliseconds(100)))));
  }

  void Cancel(const absl::Status& cause) override {
    {
      absl::MutexLock lock(&mutex_);
      if (cancelled_.ok()) cancelled_ = cause;
    }
    context_.TryCancel();
  }

 private:
  void Write() {
    while (true) {
      v1::ExchangeRequest request;
      {
        absl::MutexLock lock(&mutex_);
        const auto work = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
          return closing_ || ended_ || !cancelled_.ok() || !requests_.empty();
        };
        mutex_.Await(absl::Condition(&work));
        if (ended_ || !cancelled_.ok()) return;
        if (requests_.empty()) break;
        request = std::move(requests_.front());
        requests_.pop_front();
      }
      // The reader finds out why.
      if (!stream_->Write(request)) return;
    }
    stream_->WritesDone();
  }

  void Read() {
    v1::ExchangeResponse response;
    absl::Status failure;
    while (failure.ok() && stream_->Read(&response)) {
      if (response.has_failure()) {
        const int code = response.failure().code();
        failure = absl::Status(
            code == 0 ? absl::StatusCode::kUnknown : static_cast<absl::StatusCode>(code),
            absl::StrCat(peer_, ": ", response.failure().message()));
        break;
      }
      failure = File(std::move(response));
      response = {};
    }
    // A server that has broken the conversation may never end the stream itself.
    if (!failure.ok()) context_.TryCancel();
    {
      absl::MutexLock lock(&mutex_);
      ended_ = true;
    }
    writer_.join();
    const grpc::Status end = stream_->Finish();
    if (failure.ok()) {
      const bool lost = end.error_code() == grpc::StatusCode::UNAVAILABLE;
      failure = FromGrpcStatus(
          end, lost ? absl::StrCat("the stream to ", peer_,
                                   " broke (it was killed, crashed, or was cut off)")
                    : peer_);
    }
    if (failure.ok())
      failure = absl::UnavailableError(absl::StrCat(peer_, " ended the stream"));
    absl::MutexLock lock(&mutex_);
    broken_ = failure;
  }

  absl::Status File(v1::ExchangeResponse response) {
    if (response.generation() != options_.generation) {
      return absl::FailedPreconditionError(
          absl::StrFormat("%s answered in generation %d instead of %d", peer_,
                          response.generation(), options_.generation));
    }
    ExchangeKey key = KeyOf(response);
    absl::MutexLock lock(&mutex_);
    if (expected_.erase(key) == 0) {
      return absl::InternalError(
          absl::StrCat(peer_, " answered what was not asked: ", Describe(key)));
    }
    responses_.emplace(std::move(key), std::move(response));
    return absl::OkStatus();
  }

  const ShardStreamOptions options_;
  const std::string peer_;
  grpc::ClientContext context_;
  const std::unique_ptr<v1::ShardService::Stub> stub_;
  const std::unique_ptr<
      grpc::ClientReaderWriter<v1::ExchangeRequest, v1::ExchangeResponse>>
      stream_;

  absl::Mutex mutex_;
  std::deque<v1::ExchangeRequest> requests_ ABSL_GUARDED_BY(mutex_);
  // Sent or queued, and not answered.
  std::set<ExchangeKey> expected_ ABSL_GUARDED_BY(mutex_);
  std::map<ExchangeKey, v1::ExchangeResponse> responses_ ABSL_GUARDED_BY(mutex_);
  absl::Status cancelled_ ABSL_GUARDED_BY(mutex_);
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  // Nothing more is read.
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;

  // Last, so that the threads see everything else initialized. The reader joins the
  // writer.
  std::thread writer_;
  std::thread reader_;
};

}  // namespace

ExchangeKey FrameKey(v1::ExchangeRequest::MessageCase kind, const v1::FrameId& id) {
  ExchangeKey key;
  key.kind = kind;
  key.step = id.step();
  key.mode = id.mode();
  key.wave = id.wave();
  key.layer = id.layer();
  key.mixture = id.mixture();
  key.call = id.call();
  return key;
}

ExchangeKey StepKey(v1::ExchangeRequest::MessageCase kind, uint64_t step) {
  ExchangeKey key;
  key.kind = kind;
  key.step = step;
  return key;
}

ExchangeKey ScoreKey(uint64_t batch, uint32_t wave, uint32_t part) {
  ExchangeKey key = StepKey(Case::kScore, batch);
  key.wave = wave;
  key.part = part;
  return key;
}

ExchangeKey KeyOf(const v1::ExchangeRequest& request) {
  switch (request.message_case()) {
    case Case::kPull: {
      ExchangeKey key = StepKey(Case::kPull, request.pull().version());
      if (request.pull().shards_size() > 0) {
        key.shard = request.pull().shards(0);
      } else if (request.pull().rows_size() > 0) {
        key.shard = request.pull().rows(0).shard();
      }
      return key;
    }
    case Case::kForward:
      return FrameKey(Case::kForward, request.forward().id());
    case Case::kBackward:
      return FrameKey(Case::kBackward, request.backward().id());
    case Case::kClose:
      return StepKey(Case::kClose, request.close().step());
    case Case::kApply:
      return StepKey(Case::kApply, request.apply().step());
    case Case::kScore:
      return ScoreKey(request.score().batch(), request.score().wave(),
                      request.score().part());
    case Case::kHello:
    case Case::MESSAGE_NOT_SET:
      break;
  }
  return StepKey(request.message_case(), 0);
}

ExchangeKey KeyOf(const v1::ExchangeResponse& response) {
  using Response = v1::ExchangeResponse;
  switch (response.message_case()) {
    case Response::kHello:
      return StepKey(Case::kHello, 0);
    case Response::kPull: {
      ExchangeKey key = StepKey(Case::kPull, response.pull().version());
      if (response.pull().shards_size() > 0)
        key.shard = response.pull().shards(0).shard();
      return key;
    }
    case Response::kForward:
      return FrameKey(Case::kForward, response.forward().id());
    case Response::kBackward:
      return FrameKey(Case::kBackward, response.backward().id());
    case Response::kClose:
      return StepKey(Case::kClose, response.close().step());
    case Response::kApply:
      return StepKey(Case::kApply, response.apply().step());
    case Response::kScore:
      return ScoreKey(response.score().batch(), response.score().wave(),
                      response.score().part());
    case Response::kFailure:
    case Response::MESSAGE_NOT_SET:
      break;
  }
  return ExchangeKey();
}

std::string Describe(const ExchangeKey& key) {
  switch (key.kind) {
    case Case::kHello:
      return "hello";
    case Case::kPull:
      return absl::StrFormat("pull of %s version %d", key.shard, key.step);
    case Case::kForward:
    case Case::kBackward:
      return absl::StrCat(
          key.kind == Case::kForward ? "forward" : "backward",
          key.mode == v1::MODE_EVALUATE ? " evaluation batch " : " step ", key.step,
          " wave ", key.wave, " layer ", key.layer,
          key.mixture == kRecurrentMixture ? absl::StrCat(" time step ", key.call) : "");
    case Case::kClose:
      return absl::StrFormat("close of step %d", key.step);
    case Case::kApply:
      return absl::StrFormat("apply of step %d", key.step);
    case Case::kScore:
      return absl::StrFormat("score of evaluation batch %d wave %d part %d", key.step,
                             key.wave, key.part);
    case Case::MESSAGE_NOT_SET:
      break;
  }
  return "an empty message";
}

absl::StatusOr<std::unique_ptr<ShardStream>> OpenShardStream(
    const ShardStreamOptions& options) {
  auto stream = std::make_unique<GrpcShardStream>(options);
  v1::ExchangeRequest request;
  request.mutable_hello()->set_member(options.member);
  request.mutable_hello()->set_protocol_version(kProtocolVersion);
  const ExchangeKey key = KeyOf(request);
  RETURN_IF_ERROR(stream->Send(std::move(request)));
  const absl::StatusOr<v1::ExchangeResponse> response =
      stream->Await(key, absl::Now() + options.timeout);
  if (absl::IsUnavailable(response.status())) {
    const absl::Status checked =
        CheckConnection(options.address, options.tls, Role::kServer);
    // Still a lost peer: while certificates are replaced it may pass.
    if (!checked.ok()) return absl::UnavailableError(checked.message());
  }
  RETURN_IF_ERROR(response.status());
  if (response->hello().server() != options.server) {
    stream->Cancel(absl::CancelledError("wrong server"));
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s says that it is %s", stream->peer(), response->hello().server()));
  }
  return stream;
}

}  // namespace moe
