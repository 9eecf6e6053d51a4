#include "client/status_client.h"

#include <grpcpp/grpcpp.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/manifest.h"
#include "common/net/channel.h"
#include "common/net/connection_check.h"
#include "common/net/grpc_status.h"
#include "proto/moe/v1/operator.grpc.pb.h"
#include "proto/moe/v1/status.grpc.pb.h"

namespace moe {
namespace {

// Calls Stub's method at the first of the addresses that doesn't answer UNAVAILABLE.
template <typename Service, typename Request, typename Response, typename Stub>
absl::StatusOr<Response> Ask(
    const std::string& who, const std::vector<std::string>& addresses, Role role,
    const std::shared_ptr<const TlsCredentials>& tls, absl::Duration timeout,
    grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
    const Request& request = Request()) {
  std::vector<std::string> reasons;
  absl::StatusCode code = absl::StatusCode::kUnavailable;
  for (const std::string& address : addresses) {
    const std::unique_ptr<typename Service::Stub> stub =
        Service::NewStub(MakeChannel(address, tls, role));
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    Response response;
    const grpc::Status status = (stub.get()->*method)(&context, request, &response);
    if (status.ok()) return response;
    const std::string peer = absl::StrCat(who, " at ", address);
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE) {
      return FromGrpcStatus(status, peer);
    }
    absl::Status why = CheckConnection(address, tls, role, timeout);
    if (why.ok()) {
      why = FromGrpcStatus(status, absl::StrCat("can't reach ", peer));
    } else {
      why = Annotate(why, absl::StrCat("can't reach ", peer));
      code = why.code();
    }
    reasons.emplace_back(why.message());
  }
  return absl::Status(code, absl::StrJoin(reasons, "; "));
}

// The servers that host shards.
std::vector<v1::ServerAddress> Hosts(const v1::ClusterState& state) {
  std::set<std::string> hosting;
  for (const v1::ShardPlacement& shard : state.placement().shards()) {
    hosting.insert(shard.server());
    if (!shard.standby().empty()) hosting.insert(shard.standby());
  }
  std::vector<v1::ServerAddress> hosts;
  for (const v1::ServerAddress& server : state.servers()) {
    if (hosting.contains(server.server())) hosts.push_back(server);
  }
  return hosts;
}

}  // namespace

absl::StatusOr<v1::GetClusterStatusResponse> StatusClient::GetClusterStatus(
    const std::string& coordinator) const {
  return Ask<v1::ClusterStatusService>("the coordinator", SplitAddresses(coordinator),
                                       Role::kCoordinator, tls_, timeout_,
                                       &v1::ClusterStatusService::Stub::GetClusterStatus);
}

absl::StatusOr<v1::TakeCheckpointResponse> StatusClient::TakeCheckpoint(
    const std::string& coordinator) const {
  return Ask<v1::OperatorService>("the coordinator", SplitAddresses(coordinator),
                                  Role::kCoordinator, tls_, timeout_,
                                  &v1::OperatorService::Stub::TakeCheckpoint);
}

absl::StatusOr<v1::ScaleResponse> StatusClient::Scale(
    const std::string& coordinator, const v1::ScaleRequest& request) const {
  return Ask<v1::OperatorService>("the coordinator", SplitAddresses(coordinator),
                                  Role::kCoordinator, tls_, timeout_,
                                  &v1::OperatorService::Stub::Scale, request);
}

absl::StatusOr<v1::GetServerStatusResponse> StatusClient::GetServerStatus(
    const v1::ServerAddress& server) const {
  return Ask<v1::ServerStatusService>(server.server(), {server.address()}, Role::kServer,
                                      tls_, timeout_,
                                      &v1::ServerStatusService::Stub::GetServerStatus);
}

absl::StatusOr<v1::GetTensorDigestsResponse> StatusClient::GetTensorDigests(
    const v1::ServerAddress& server) const {
  return Ask<v1::ServerStatusService>(server.server(), {server.address()}, Role::kServer,
                                      tls_, timeout_,
                                      &v1::ServerStatusService::Stub::GetTensorDigests);
}

std::vector<ServerReport> GetServerReports(const StatusClient& client,
                                           const v1::ClusterState& state) {
  std::vector<ServerReport> reports;
  for (v1::ServerAddress& host : Hosts(state)) {
    auto status = client.GetServerStatus(host);
    reports.push_back({.server = std::move(host), .status = std::move(status)});
  }
  return reports;
}

absl::StatusOr<LiveDigest> GetLiveDigest(const StatusClient& client,
                                         const v1::ClusterState& state, int attempts) {
  const std::vector<v1::ServerAddress> hosts = Hosts(state);
  if (hosts.empty()) {
    return absl::FailedPreconditionError("no server has shards yet");
  }
  std::vector<std::string> versions;
  for (int attempt = 0; attempt < attempts; ++attempt) {
    LiveDigest live;
    std::set<uint64_t> distinct;
    bool aborted = false;
    // By number: the digest, and whose it is.
    std::map<uint64_t, std::pair<std::string, std::string>> tensors;
    std::set<std::string> untouched;
    std::string differs;
    versions.clear();
    for (const v1::ServerAddress& host : hosts) {
      const absl::StatusOr<v1::GetTensorDigestsResponse> answer =
          client.GetTensorDigests(host);
      if (absl::IsAborted(answer.status())) {
        // The next attempt begins with the first server.
        versions.push_back(absl::StrCat(host.server(), " between two versions"));
        aborted = true;
        break;
      }
      RETURN_IF_ERROR(answer.status());
      const v1::GetTensorDigestsResponse& digests = *answer;
      // Its version says nothing if it has replica shards alone.
      if (digests.tensors().empty() && digests.untouched().empty()) continue;
      live.version = digests.version();
      distinct.insert(digests.version());
      versions.push_back(absl::StrCat(host.server(), " ", digests.version()));
      // Where a shard has two copies both say the same.
      for (const v1::TensorDigest& tensor : digests.tensors()) {
        const auto [there, added] =
            tensors.try_emplace(tensor.tensor(), tensor.sha256(), host.server());
        if (added) {
          live.tensors.push_back(tensor);
        } else if (there->second.first != tensor.sha256()) {
          differs = absl::StrCat(
              "the copies of ", tensor.name(), " differ: ", there->second.second,
              " has one with SHA-256 ", there->second.first.substr(0, 12), ", ",
              host.server(), " one with ", tensor.sha256().substr(0, 12));
        }
      }
      for (const v1::UntouchedTensors& range : digests.untouched()) {
        if (untouched.insert(range.SerializeAsString()).second) {
          live.untouched.push_back(range);
        }
      }
    }
    if (aborted || distinct.size() > 1) continue;
    if (!differs.empty()) return absl::DataLossError(differs);
    ASSIGN_OR_RETURN(live.digest, ModelDigest(live.tensors, live.untouched));
    return live;
  }
  return absl::FailedPreconditionError(
      absl::StrCat("the servers were at different versions each time, last ",
                   absl::StrJoin(versions, ", "),
                   ": the job is in the middle of its steps; a checkpoint's digest can "
                   "be had at any time"));
}

}  // namespace moe
