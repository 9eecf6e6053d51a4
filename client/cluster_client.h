// A worker's connection to all servers of a cluster.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/expert_client.h"
#include "client/parameter_client.h"
#include "client/shard_stream.h"
#include "client/table_client.h"
#include "common/base/protocol.h"
#include "common/job/model_plan.h"
#include "common/net/tls_credentials.h"
#include "proto/moe/v1/coordinator.pb.h"

namespace moe {

class ClusterClient {
 public:
  struct Options {
    // Member id of this worker ("worker/w0"), its incarnation, and the replicas that it owns, ascending.
    std::string member;
    uint64_t incarnation = 0;
    std::vector<uint32_t> owned_replicas;
    // Null: plaintext.
    std::shared_ptr<const TlsCredentials> tls = nullptr;
    // Of every wait.
    absl::Duration timeout = absl::Seconds(60);
    // How long to try to take up a stream that broke.
    absl::Duration reconnect_timeout = kReconnectTimeout;
    // How much longer it may be for servers that write a checkpoint's files.
    absl::Duration cut_timeout = absl::Hours(1);
    // Called by the waiting thread with the reason when a wait begins, and with "" when
    // it ends.
    std::function<void(const std::string& reason)> on_wait;
    // Called by the same thread, also by Connect's, when a server is lost of whose shards others have
    // copies. Whether to go on without it: not if it was lost because the generation is over. Null: never.
    std::function<bool(const std::string& server, const absl::Status& why)> go_on_without;
    // Tests put fakes here.
    ShardStreamFactory open_stream = OpenShardStream;
  };

  // Opens a stream to every server of state.placement that hosts a shard, unless it is gone on without.
  // The state is
  // that of a cluster from phase LOADING on, and `plan` is its job's.
  static absl::StatusOr<std::unique_ptr<ClusterClient>> Connect(
      const v1::ClusterState& state, const ModelPlan& plan, Options options);
  virtual ~ClusterClient() = default;

  virtual ExpertClient& experts() = 0;
  virtual ParameterClient& parameters() = 0;
  // Of a job without tables: not to be used.
  virtual TableClient& tables() = 0;
  // The coordinator has lost all servers but these: what waits for the others goes on without them. Any
  // thread.
  virtual void KeepServers(const std::set<std::string>& servers) = 0;
  // Every wait, now and later, returns `cause`. Any thread.
  virtual void Cancel(const absl::Status& cause) = 0;
};

}  // namespace moe
