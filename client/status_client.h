// What an operator can ask the coordinator and the servers (status.proto, operator.proto).
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/net/tls_credentials.h"
#include "proto/moe/v1/operator.pb.h"
#include "proto/moe/v1/status.pb.h"

namespace moe {

// Each call has `timeout`; an error names whom it asked, and says so plainly if nobody is
// there.
class StatusClient {
 public:
  // tls: null for plaintext.
  explicit StatusClient(absl::Duration timeout = absl::Seconds(5),
                        std::shared_ptr<const TlsCredentials> tls = nullptr)
      : timeout_(timeout), tls_(std::move(tls)) {}

  absl::StatusOr<v1::GetClusterStatusResponse> GetClusterStatus(
      const std::string& coordinator) const;
  absl::StatusOr<v1::TakeCheckpointResponse> TakeCheckpoint(
      const std::string& coordinator) const;
  absl::StatusOr<v1::ScaleResponse> Scale(const std::string& coordinator,
                                          const v1::ScaleRequest& request) const;
  absl::StatusOr<v1::GetServerStatusResponse> GetServerStatus(
      const v1::ServerAddress& server) const;
  absl::StatusOr<v1::GetTensorDigestsResponse> GetTensorDigests(
      const v1::ServerAddress& server) const;

 private:
  const absl::Duration timeout_;
  const std::shared_ptr<const TlsCredentials> tls_;
};

struct ServerReport {
  v1::ServerAddress server;
  absl::StatusOr<v1::GetServerStatusResponse> status;
};
// Of every server that hosts shards.
std::vector<ServerReport> GetServerReports(const StatusClient& client,
                                           const v1::ClusterState& state);

// The digest of the whole model (checkpoint/manifest.h), as its servers hold it.
struct LiveDigest {
  uint64_t version = 0;
  std::string digest;
  std::vector<v1::TensorDigest> tensors;
  std::vector<v1::UntouchedTensors> untouched;
};
// Asks every server, again if they are not all at one version, as they are between steps
// only; after `attempts` FAILED_PRECONDITION names the versions.
absl::StatusOr<LiveDigest> GetLiveDigest(const StatusClient& client,
                                         const v1::ClusterState& state, int attempts);

}  // namespace moe
