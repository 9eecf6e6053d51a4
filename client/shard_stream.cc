#include "client/shard_stream.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "common/base/protocol.h"
#include "common/base/status_macros.h"
#include "common/net/channel.h"
#include "common/net/checksum.h"
#include "common/net/connection_check.h"
#include "common/net/exchange.h"
#include "common/net/grpc_status.h"
#include "common/net/introduction.h"
#include "glog/logging.h"
#include "proto/moe/v1/expert.pb.h"

namespace moe {
namespace {

using Case = v1::ExchangeRequest;

// How long a destructor waits for the server to end its half of the stream.
constexpr absl::Duration kGoodbye = absl::Seconds(2);
// Between attempts to connect.
constexpr absl::Duration kFirstPause = absl::Milliseconds(20);
constexpr absl::Duration kLongestPause = absl::Milliseconds(200);
// So often in a row an address without a listener is taken for a process that has ended.
constexpr int kRefusals = 2;
constexpr absl::Duration kPauseAfterRefusal = absl::Milliseconds(100);
// While it connects it looks so often whether it is to go on.
constexpr absl::Duration kLook = absl::Milliseconds(100);

class GrpcShardStream final : public ShardStream {
 public:
  explicit GrpcShardStream(const ShardStreamOptions& options)
      : options_(options),
        peer_(absl::StrCat(options.server, " at ", options.address)),
        thread_([this] { Run(); }) {}

  ~GrpcShardStream() override {
    {
      absl::MutexLock lock(&mutex_);
      closing_ = true;
      const auto over = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return !broken_.ok() || !cancelled_.ok();
      };
      mutex_.AwaitWithTimeout(absl::Condition(&over), kGoodbye);
      if (cancelled_.ok()) cancelled_ = absl::CancelledError("the stream is closed");
      if (connection_ != nullptr) connection_->context.TryCancel();
    }
    thread_.join();
  }

  const std::string& peer() const override { return peer_; }

  // Until the first server has answered, or didn't.
  absl::Status AwaitGreeting() {
    absl::MutexLock lock(&mutex_);
    const auto decided = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return server_incarnation_.has_value() || !broken_.ok();
    };
    mutex_.Await(absl::Condition(&decided));
    return server_incarnation_.has_value() ? absl::OkStatus() : broken_;
  }

  absl::Status Send(v1::ExchangeRequest request) override {
    request.set_generation(options_.generation);
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(cancelled_);
    RETURN_IF_ERROR(broken_);
    request.set_sequence(++last_);
    ExchangeKey key = KeyOf(request);
    expected_[key] = last_;
    NoteAsked(std::move(key));
    Seal(&request);
    unanswered_[last_] = std::make_shared<const v1::ExchangeRequest>(std::move(request));
    return absl::OkStatus();
  }

  absl::StatusOr<Received<v1::ExchangeResponse>> Await(const ExchangeKey& key,
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
    absl::MutexLock lock(&mutex_);
    if (cancelled_.ok()) cancelled_ = cause;
    if (connection_ != nullptr) connection_->context.TryCancel();
  }

 private:
  // One stream of gRPC's.
  struct Connection {
    grpc::ClientContext context;
    std::unique_ptr<ExchangeClientStream> stream;
    // Under mutex_: the server has answered Hello, or not in time; nothing more is read.
    bool greeted = false;
    bool late = false;
    bool ended = false;
    // Of the reader: a message was spoilt on its way.
    absl::Status damage;
  };
  // How a connection ended.
  struct End {
    absl::Status status;
    // Another may do better.
    bool broke = false;
    // Nobody listens at the address.
    bool refused = false;
  };

  // Connection after connection, until one ends for good.
  void Run() {
    absl::Time deadline = absl::Now() + options_.reconnect_timeout;
    absl::Time hello_deadline = absl::Now() + options_.timeout;
    absl::Duration pause = kFirstPause;
    std::string first;  // what broke the last one that was good
    int refusals = 0;
    while (true) {
      bool greeted = false;
      const End end = Talk(hello_deadline, &greeted);
      if (greeted) {
        deadline = absl::Now() + options_.reconnect_timeout;
        refusals = 0;
        first = std::string(end.status.message());
      }
      hello_deadline = deadline;
      refusals = end.refused ? refusals + 1 : 0;
      absl::MutexLock lock(&mutex_);
      if (std::exchange(progress_, false)) pause = kFirstPause;
      const bool again = end.broke && cancelled_.ok() && !closing_ &&
                         refusals < kRefusals && absl::Now() < deadline;
      if (!again) {
        broken_ =
            first.empty() || first == end.status.message()
                ? end.status
                : absl::Status(end.status.code(),
                               absl::StrCat(first, "; then ", end.status.message()));
        return;
      }
      if (greeted) LOG(WARNING) << first << "; connecting again";
      const auto stop = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return !cancelled_.ok() || closing_;
      };
      mutex_.AwaitWithTimeout(absl::Condition(&stop),
                              end.refused ? kPauseAfterRefusal : pause);
      pause = std::min(2 * pause, kLongestPause);
    }
  }

  // Over one connection, until it ends.
  End Talk(absl::Time hello_deadline, bool* greeted) {
    const std::shared_ptr<grpc::Channel> channel =
        MakeChannel(options_.address, options_.tls, Role::kServer);
    if (!AwaitChannel(*channel, hello_deadline)) {
      return {
          absl::UnavailableError(absl::StrCat("no connection to ", peer_, " in time")),
          /*broke=*/true};
    }
    Connection connection;
    {
      absl::MutexLock lock(&mutex_);
      if (!cancelled_.ok()) return {cancelled_};
      connection_ = &connection;
    }
    Introduce({.member = options_.member, .nonce = options_.nonce}, &connection.context);
    connection.stream = StartExchange(channel, &connection.context);
    std::thread writer([&] { Write(connection, hello_deadline); });
    const absl::Status failure = Read(connection);
    // A server that has broken the conversation may never end the stream itself.
    if (!failure.ok()) connection.context.TryCancel();
    {
      absl::MutexLock lock(&mutex_);
      connection.ended = true;
    }
    writer.join();
    const grpc::Status end = connection.stream->Finish();
    absl::MutexLock lock(&mutex_);
    connection_ = nullptr;
    *greeted = connection.greeted;
    if (!failure.ok()) return {failure};
    if (!connection.damage.ok()) {
      return {absl::UnavailableError(absl::StrCat(
                  "the stream to ", peer_, " broke: ", connection.damage.message())),
              /*broke=*/true};
    }
    if (connection.late) {
      return {absl::DeadlineExceededError(
                  absl::StrCat(peer_, " did not answer hello in time")),
              /*broke=*/true};
    }
    if (end.ok())
      return {absl::UnavailableError(absl::StrCat(peer_, " ended the stream"))};
    // A server that refuses says why (Failure); the others are gRPC's names for a broken stream.
    const bool lost = end.error_code() == grpc::StatusCode::UNAVAILABLE ||
                      end.error_code() == grpc::StatusCode::INTERNAL ||
                      end.error_code() == grpc::StatusCode::UNKNOWN;
    // A server cancels a stream that it takes for broken.
    const bool cancelled = end.error_code() == grpc::StatusCode::CANCELLED;
    return {lost || cancelled ? absl::UnavailableError(absl::StrCat(
                                    "the stream to ", peer_,
                                    " broke (it was killed, crashed, or was cut off): ",
                                    end.error_message()))
                              : FromGrpcStatus(end, peer_),
            lost || cancelled,
            lost && !connection.greeted &&
                absl::StrContains(end.error_message(), std::strerror(ECONNREFUSED))};
  }

  // Until it is connected or has failed to be, of which the call will tell; false if neither in time.
  bool AwaitChannel(grpc::Channel& channel, absl::Time deadline) {
    while (true) {
      const grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/true);
      if (state == GRPC_CHANNEL_READY || state == GRPC_CHANNEL_TRANSIENT_FAILURE) {
        return true;
      }
      {
        absl::MutexLock lock(&mutex_);
        if (!cancelled_.ok() || absl::Now() >= deadline) return false;
      }
      channel.WaitForStateChange(
          state, absl::ToChronoTime(std::min(deadline, absl::Now() + kLook)));
    }
  }

  void Write(Connection& connection, absl::Time hello_deadline) {
    v1::ExchangeRequest hello;
    hello.set_generation(options_.generation);
    hello.mutable_hello()->set_member(options_.member);
    hello.mutable_hello()->set_protocol_version(kProtocolVersion);
    hello.mutable_hello()->set_incarnation(options_.incarnation);
    // The next message to be written.
    uint64_t next = 0;
    {
      absl::MutexLock lock(&mutex_);
      hello.mutable_hello()->set_sent(sent_);
    }
    // The reader finds out why.
    if (!WriteSealed(std::move(hello), connection)) return;
    {
      absl::MutexLock lock(&mutex_);
      const auto answered = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return connection.greeted || connection.ended || !cancelled_.ok();
      };
      if (!mutex_.AwaitWithDeadline(absl::Condition(&answered), hello_deadline)) {
        connection.late = true;
        connection.context.TryCancel();
        return;
      }
    }
    while (true) {
      std::shared_ptr<const v1::ExchangeRequest> request;
      bool received = false;
      {
        absl::MutexLock lock(&mutex_);
        const auto work = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
          return closing_ || connection.ended || !cancelled_.ok() ||
                 unanswered_.lower_bound(next) != unanswered_.end();
        };
        mutex_.Await(absl::Condition(&work));
        if (connection.ended || !cancelled_.ok()) return;
        const auto found = unanswered_.lower_bound(next);
        if (found == unanswered_.end()) break;
        request = found->second;
        next = found->first + 1;
        sent_ = std::max(sent_, found->first);
        received = found->first <= received_;
      }
      if (!(received ? WriteSealed(NameOf(*request), connection)
                     : connection.stream->Write(Encode(std::move(request))))) {
        return;
      }
    }
    connection.stream->WritesDone();
  }

  bool WriteSealed(v1::ExchangeRequest request, Connection& connection) {
    Seal(&request);
    return connection.stream->Write(
        Encode(std::make_shared<const v1::ExchangeRequest>(std::move(request))));
  }

  // Until the stream ends: OK, or why it must.
  absl::Status Read(Connection& connection) {
    grpc::ByteBuffer bytes;
    while (connection.stream->Read(&bytes)) {
      absl::StatusOr<Received<v1::ExchangeResponse>> received = DecodeResponse(bytes);
      bytes.Clear();
      connection.damage = received.status();
      if (!connection.damage.ok()) {
        connection.context.TryCancel();
        return absl::OkStatus();
      }
      const v1::ExchangeResponse& response = received->message;
      if (response.has_failure()) {
        const int code = response.failure().code();
        return absl::Status(
            code == 0 ? absl::StatusCode::kUnknown : static_cast<absl::StatusCode>(code),
            absl::StrCat(peer_, ": ", response.failure().message()));
      }
      if (response.generation() != options_.generation) {
        return absl::FailedPreconditionError(
            absl::StrFormat("%s answered in generation %d instead of %d", peer_,
                            response.generation(), options_.generation));
      }
      absl::MutexLock lock(&mutex_);
      RETURN_IF_ERROR(connection.greeted ? File(*std::move(received))
                                         : Greet(response, connection));
    }
    return absl::OkStatus();
  }

  absl::Status Greet(const v1::ExchangeResponse& response, Connection& connection)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!response.has_hello()) return Unasked(KeyOf(response));
    const v1::HelloResponse& hello = response.hello();
    if (hello.server() != options_.server) {
      return absl::FailedPreconditionError(
          absl::StrFormat("%s says that it is %s", peer_, hello.server()));
    }
    if (server_incarnation_.has_value() && *server_incarnation_ != hello.incarnation()) {
      return absl::UnavailableError(
          absl::StrFormat("%s has been started again (incarnation %d, not %d)", peer_,
                          hello.incarnation(), *server_incarnation_));
    }
    if (hello.received() > sent_) {
      return absl::InternalError(absl::StrFormat(
          "%s has %d messages of %d that were sent", peer_, hello.received(), sent_));
    }
    if (server_incarnation_.has_value()) {
      const auto has =
          std::distance(unanswered_.begin(), unanswered_.upper_bound(hello.received()));
      LOG(INFO) << "took up the stream to " << peer_ << ": of " << unanswered_.size()
                << " messages without an answer it has " << has;
    }
    server_incarnation_ = hello.incarnation();
    received_ = hello.received();
    connection.greeted = true;
    return absl::OkStatus();
  }

  absl::Status File(Received<v1::ExchangeResponse> received)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const v1::ExchangeResponse& response = received.message;
    const ExchangeKey key = KeyOf(response);
    const auto expected = expected_.find(key);
    // A pull has the name of others.
    if (expected == expected_.end() ||
        (response.has_pull() && response.pull().sequence() != expected->second)) {
      return CheckAnswered(key, response);
    }
    progress_ = true;
    unanswered_.erase(expected->second);
    expected_.erase(expected);
    responses_.emplace(key, std::move(received));
    return absl::OkStatus();
  }

  void NoteAsked(ExchangeKey key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (key.step > 0) {
      asked_.erase(asked_.lower_bound(StepKey(key.kind, 0)),
                   asked_.lower_bound(StepKey(key.kind, key.step - 1)));
    }
    asked_.insert(std::move(key));
  }

  // OK if the answer has come before, so that this one counts for nothing.
  absl::Status CheckAnswered(const ExchangeKey& key,
                             const v1::ExchangeResponse& response) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    if (response.has_pull() ? response.pull().sequence() <= last_
                            : asked_.contains(key)) {
      return absl::OkStatus();
    }
    // Older ones aren't known any more.
    const auto newest =
        asked_.lower_bound(StepKey(key.kind, std::numeric_limits<uint64_t>::max()));
    if (newest != asked_.begin()) {
      const ExchangeKey& last = *std::prev(newest);
      if (last.kind == key.kind && key.step + 1 < last.step) return absl::OkStatus();
    }
    return Unasked(key);
  }

  absl::Status Unasked(const ExchangeKey& key) const {
    return absl::InternalError(
        absl::StrCat(peer_, " answered what was not asked: ", Describe(key)));
  }

  const ShardStreamOptions options_;
  const std::string peer_;

  absl::Mutex mutex_;
  // The present one.
  Connection* connection_ ABSL_GUARDED_BY(mutex_) = nullptr;
  // From the first answer on.
  std::optional<uint64_t> server_incarnation_ ABSL_GUARDED_BY(mutex_);
  // Sequences: of the last request, the last that was written to any connection, and the last that the
  // server had when the present one began.
  uint64_t last_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t sent_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t received_ ABSL_GUARDED_BY(mutex_) = 0;
  // Requests without an answer: by sequence, and their sequences.
  std::map<uint64_t, std::shared_ptr<const v1::ExchangeRequest>> unanswered_
      ABSL_GUARDED_BY(mutex_);
  std::map<ExchangeKey, uint64_t> expected_ ABSL_GUARDED_BY(mutex_);
  // Of each kind those of the newest step and the one before it.
  std::set<ExchangeKey> asked_ ABSL_GUARDED_BY(mutex_);
  std::map<ExchangeKey, Received<v1::ExchangeResponse>> responses_
      ABSL_GUARDED_BY(mutex_);
  absl::Status cancelled_ ABSL_GUARDED_BY(mutex_);
  // Whether anything was answered over the present connection.
  bool progress_ ABSL_GUARDED_BY(mutex_) = false;
  // No connection is there or comes any more.
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;

  // Last, so that it sees everything else initialized.
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ShardStream>> OpenShardStream(
    const ShardStreamOptions& options) {
  auto stream = std::make_unique<GrpcShardStream>(options);
  const absl::Status greeted = stream->AwaitGreeting();
  if (absl::IsUnavailable(greeted)) {
    const absl::Status checked =
        CheckConnection(options.address, options.tls, Role::kServer);
    // Still a lost peer: while certificates are replaced it may pass.
    if (!checked.ok()) return absl::UnavailableError(checked.message());
  }
  RETURN_IF_ERROR(greeted);
  return stream;
}

}  // namespace moe
