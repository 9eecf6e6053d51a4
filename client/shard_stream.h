// One worker's conversation with one server: the stream ShardService.Exchange
// (expert.proto).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/exchange_key.h"
#include "common/base/protocol.h"
#include "common/net/received.h"
#include "common/net/tls_credentials.h"
#include "proto/moe/v1/expert.pb.h"

namespace moe {

// Thread-safe. Errors name the server. When what carries it breaks it is carried on by the next,
// and what has no answer yet is sent again; requests are kept until then.
class ShardStream {
 public:
  virtual ~ShardStream() = default;

  // "server/s0 at 127.0.0.1:4000"
  virtual const std::string& peer() const = 0;
  // Queues the request and returns; the generation is filled in.
  virtual absl::Status Send(v1::ExchangeRequest request) = 0;
  // The response to the request with that key, which has been sent. DEADLINE_EXCEEDED if
  // it doesn't come in time; the server's own status if it gave up; UNAVAILABLE if the
  // stream broke and couldn't be taken up again.
  virtual absl::StatusOr<Received<v1::ExchangeResponse>> Await(const ExchangeKey& key,
                                                               absl::Time deadline) = 0;
  // Every wait, now and later, returns `cause`.
  virtual void Cancel(const absl::Status& cause) = 0;
};

struct ShardStreamOptions {
  // Member id of the server ("server/s0") and where it listens.
  std::string server;
  std::string address;
  // Member id of the worker, its incarnation, and what shows that it is (introduction.h).
  std::string member;
  uint64_t incarnation = 0;
  uint64_t nonce = 0;
  uint64_t generation = 0;
  // Null: plaintext.
  std::shared_ptr<const TlsCredentials> tls = nullptr;
  // For the first answer.
  absl::Duration timeout;
  // How long it tries to take up what broke. 0: not at all.
  absl::Duration reconnect_timeout = kReconnectTimeout;
};

using ShardStreamFactory = std::function<absl::StatusOr<std::unique_ptr<ShardStream>>(
    const ShardStreamOptions&)>;

// Connects over gRPC and says Hello; returns when the server has answered.
absl::StatusOr<std::unique_ptr<ShardStream>> OpenShardStream(
    const ShardStreamOptions& options);

}  // namespace moe
