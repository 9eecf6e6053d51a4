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
#include "common/net/tls_credentials.h"
#include "proto/moe/v1/expert.pb.h"

namespace moe {

// Which request a response answers.
struct ExchangeKey {
  v1::ExchangeRequest::MessageCase kind = v1::ExchangeRequest::MESSAGE_NOT_SET;
  // Step; of a pull the version, of a score the evaluation batch.
  uint64_t step = 0;
  // Forward and backward only; the wave of a score, too.
  v1::Mode mode = v1::MODE_UNSPECIFIED;
  uint32_t wave = 0;
  uint32_t layer = 0;
  uint32_t mixture = 0;
  uint32_t call = 0;
  // Scores only.
  uint32_t part = 0;
  // Pulls only: the first shard.
  std::string shard;
  friend auto operator<=>(const ExchangeKey&, const ExchangeKey&) = default;
};
// Of a forward or backward message, and of a close or apply.
ExchangeKey FrameKey(v1::ExchangeRequest::MessageCase kind, const v1::FrameId& id);
ExchangeKey StepKey(v1::ExchangeRequest::MessageCase kind, uint64_t step);
ExchangeKey ScoreKey(uint64_t batch, uint32_t wave, uint32_t part);
ExchangeKey KeyOf(const v1::ExchangeRequest& request);
// Kind MESSAGE_NOT_SET for a Failure or an empty response.
ExchangeKey KeyOf(const v1::ExchangeResponse& response);
// "forward step 17 wave 0 layer 1", of a recurrent mixture "... time step 3"
std::string Describe(const ExchangeKey& key);

// Thread-safe. Errors name the server.
class ShardStream {
 public:
  virtual ~ShardStream() = default;

  // "server/s0 at 127.0.0.1:4000"
  virtual const std::string& peer() const = 0;
  // Queues the request and returns; the generation is filled in.
  virtual absl::Status Send(v1::ExchangeRequest request) = 0;
  // The response to the request with that key, which has been sent. DEADLINE_EXCEEDED if
  // it doesn't come in time; the server's own status if it gave up; UNAVAILABLE if the
  // stream broke.
  virtual absl::StatusOr<v1::ExchangeResponse> Await(const ExchangeKey& key,
                                                     absl::Time deadline) = 0;
  // Every wait, now and later, returns `cause`.
  virtual void Cancel(const absl::Status& cause) = 0;
};

struct ShardStreamOptions {
  // Member id of the server ("server/s0") and where it listens.
  std::string server;
  std::string address;
  // Member id of the worker.
  std::string member;
  uint64_t generation = 0;
  // Null: plaintext.
  std::shared_ptr<const TlsCredentials> tls = nullptr;
  // For the first answer.
  absl::Duration timeout;
};

using ShardStreamFactory = std::function<absl::StatusOr<std::unique_ptr<ShardStream>>(
    const ShardStreamOptions&)>;

// Connects over gRPC and says Hello; returns when the server has answered.
absl::StatusOr<std::unique_ptr<ShardStream>> OpenShardStream(
    const ShardStreamOptions& options);

}  // namespace moe
