#include "server/coordinator/candidate.h"

#include <glog/logging.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "server/coordinator/standby_service.h"

namespace moe {

absl::StatusOr<EtcdAddress> ParseEtcdAddress(absl::string_view store) {
  const absl::Status bad = absl::InvalidArgumentError(absl::StrCat(
      "--store=", store, " isn't of the form etcd://host:port[,host:port...]/prefix"));
  if (!absl::ConsumePrefix(&store, "etcd://")) return bad;
  const size_t slash = store.find('/');
  if (slash == absl::string_view::npos) return bad;
  EtcdAddress address;
  address.prefix = std::string(absl::StripSuffix(store.substr(slash + 1), "/"));
  if (address.prefix.empty()) return bad;
  for (const absl::string_view endpoint : absl::StrSplit(store.substr(0, slash), ',')) {
    if (endpoint.find(':') == absl::string_view::npos) return bad;
    address.endpoints.emplace_back(endpoint);
  }
  return address;
}

absl::StatusOr<std::unique_ptr<Candidate>> Candidate::Await(Options options) {
  std::unique_ptr<Candidate> candidate(new Candidate());
  StandbyNotice notice;
  StandbyCoordinatorService coordinator(notice);
  StandbyStatusService status(notice);
  StandbyOperatorService operators(notice);
  grpc::Service* const services[] = {&coordinator, &status, &operators};
  options.rpc.health_of = {v1::CoordinatorService::service_full_name(),
                           v1::ClusterStatusService::service_full_name(),
                           v1::OperatorService::service_full_name()};
  ASSIGN_OR_RETURN(const std::unique_ptr<RpcServer> server,
                   RpcServer::Start(options.listen, services, options.rpc));
  for (const std::string& service : options.rpc.health_of) {
    server->SetServing(service, false);
  }
  candidate->address_ = server->address();
  if (options.listening) options.listening(candidate->address_);

  options.etcd.on_data_loss = options.on_deposed;
  candidate->client_ = std::make_unique<EtcdClient>(options.etcd);
  Leadership::Options leadership;
  leadership.key = absl::StrCat(options.prefix, "/leader");
  leadership.address =
      options.advertise.empty() ? candidate->address_ : options.advertise;
  leadership.lease = options.lease;
  leadership.on_deposed = options.on_deposed;
  const auto standby = [&](const std::string& leader) {
    notice.set_leader(leader);
    if (!leader.empty()) candidate->was_standby_ = true;
    if (!options.print) return;
    options.print(leader.empty() ? "standby; there is no leader at the moment"
                                 : absl::StrCat("standby; the leader is ", leader));
  };
  ASSIGN_OR_RETURN(
      candidate->leadership_,
      Leadership::Await(*candidate->client_, leadership, standby, options.cancelled));
  EtcdStore::Options store;
  store.prefix = options.prefix;
  store.leader_key = leadership.key;
  store.leader_revision = candidate->leadership_->revision();
  store.timeout = options.timeout;
  store.on_deposed = options.on_deposed;
  candidate->store_ = std::make_unique<EtcdStore>(*candidate->client_, std::move(store));
  if (options.print) {
    options.print(absl::StrCat("leads the job from ", leadership.address));
  }
  server->Shutdown(absl::ZeroDuration());
  return candidate;
}

}  // namespace moe
