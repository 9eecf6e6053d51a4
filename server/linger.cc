#include "server/linger.h"

#include <memory>
#include <utility>

#include "common/base/status_macros.h"
#include "proto/moe/v1/status.grpc.pb.h"

namespace moe {

absl::Status LingerUntil(const absl::Notification& told_to_stop,
                         const std::string& listen, RpcServer::Options options) {
  options.health_of.clear();
  // A gRPC server must have a service; this one's methods are unimplemented.
  v1::ServerStatusService::Service nothing;
  grpc::Service* const services[] = {&nothing};
  ASSIGN_OR_RETURN(const std::unique_ptr<RpcServer> server,
                   RpcServer::Start(listen, services, std::move(options)));
  told_to_stop.WaitForNotification();
  return absl::OkStatus();
}

}  // namespace moe
