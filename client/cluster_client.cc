#include "client/cluster_client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/remote_experts.h"
#include "client/remote_parameters.h"
#include "client/remote_tables.h"
#include "client/server_set.h"
#include "client/shard_map.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

class ClusterClientImpl final : public ClusterClient {
 public:
  ClusterClientImpl(const v1::Job& job, const ModelPlan& plan,
                    std::vector<uint32_t> owned, ServerSet servers)
      : plan_(plan),
        servers_(std::move(servers)),
        experts_(servers_),
        parameters_(servers_, plan_, std::move(owned),
                    static_cast<uint32_t>(job.training().replicas()),
                    job.optimizer().clip_norm()),
        tables_(servers_, plan_, job.model().d_model()) {}

  ExpertClient& experts() override { return experts_; }
  ParameterClient& parameters() override { return parameters_; }
  TableClient& tables() override { return tables_; }
  void KeepServers(const std::set<std::string>& servers) override {
    for (size_t s = 0; s < servers_.streams.size(); ++s) {
      const std::string& id = servers_.map.servers[s].id;
      if (servers.contains(id)) continue;
      servers_.streams[s]->Cancel(
          absl::UnavailableError(absl::StrCat("the coordinator has lost ", id)));
    }
  }
  void Cancel(const absl::Status& cause) override {
    for (const auto& stream : servers_.streams) stream->Cancel(cause);
  }

 private:
  const ModelPlan plan_;
  // Other threads use the map and the streams alone.
  ServerSet servers_;
  RemoteExperts experts_;
  RemoteParameters parameters_;
  RemoteTables tables_;
};

// In the place of one that could not be opened.
class NoStream final : public ShardStream {
 public:
  NoStream(std::string peer, absl::Status why)
      : peer_(std::move(peer)), why_(std::move(why)) {}

  const std::string& peer() const override { return peer_; }
  absl::Status Send(v1::ExchangeRequest /*request*/) override { return why_; }
  absl::StatusOr<Received<v1::ExchangeResponse>> Await(const ExchangeKey& /*key*/,
                                                       absl::Time /*deadline*/) override {
    return why_;
  }
  void Cancel(const absl::Status& /*cause*/) override {}

 private:
  const std::string peer_;
  const absl::Status why_;
};

// Of the member's registration; 0 if it has no replica.
uint64_t NonceOf(const v1::ClusterState& state, const std::string& member) {
  for (const v1::ReplicaAssignment& assignment : state.replicas()) {
    if (assignment.worker() == member) return assignment.nonce();
  }
  return 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ClusterClient>> ClusterClient::Connect(
    const v1::ClusterState& state, const ModelPlan& plan, Options options) {
  ServerSet servers;
  ASSIGN_OR_RETURN(servers.map, MakeShardMap(state, plan));
  servers.timeout = options.timeout;
  servers.cut_timeout = options.cut_timeout;
  servers.on_wait = std::move(options.on_wait);
  servers.go_on_without = std::move(options.go_on_without);
  for (const ShardMap::Server& server : servers.map.servers) {
    absl::StatusOr<std::unique_ptr<ShardStream>> stream =
        options.open_stream({.server = server.id,
                             .address = server.address,
                             .member = options.member,
                             .incarnation = options.incarnation,
                             .nonce = NonceOf(state, options.member),
                             .generation = state.generation(),
                             .tls = options.tls,
                             .timeout = options.timeout,
                             .reconnect_timeout = options.reconnect_timeout});
    if (stream.ok()) {
      servers.streams.push_back(*std::move(stream));
      continue;
    }
    servers.streams.push_back(std::make_unique<NoStream>(server.id, stream.status()));
    RETURN_IF_ERROR(servers.GoOnWithout(static_cast<int32_t>(servers.streams.size()) - 1,
                                        stream.status()));
  }
  return std::make_unique<ClusterClientImpl>(
      state.job(), plan, std::move(options.owned_replicas), std::move(servers));
}

}  // namespace moe
