#include "client/cluster_client.h"

#include <utility>

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
  void Cancel(const absl::Status& cause) override {
    for (const auto& stream : servers_.streams) stream->Cancel(cause);
  }

 private:
  const ModelPlan plan_;
  const ServerSet servers_;
  RemoteExperts experts_;
  RemoteParameters parameters_;
  RemoteTables tables_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ClusterClient>> ClusterClient::Connect(
    const v1::ClusterState& state, const ModelPlan& plan, Options options) {
  ServerSet servers;
  ASSIGN_OR_RETURN(servers.map, MakeShardMap(state, plan));
  servers.timeout = options.timeout;
  servers.cut_timeout = options.cut_timeout;
  servers.on_wait = std::move(options.on_wait);
  for (const ShardMap::Server& server : servers.map.servers) {
    ASSIGN_OR_RETURN(std::unique_ptr<ShardStream> stream,
                     options.open_stream({.server = server.id,
                                          .address = server.address,
                                          .member = options.member,
                                          .generation = state.generation(),
                                          .tls = options.tls,
                                          .timeout = options.timeout}));
    servers.streams.push_back(std::move(stream));
  }
  return std::make_unique<ClusterClientImpl>(
      state.job(), plan, std::move(options.owned_replicas), std::move(servers));
}

}  // namespace moe
