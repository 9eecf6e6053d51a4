// A gRPC server with our settings, health (grpc.health.v1) and reflection.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace moe {

class RpcServer {
 public:
  // listen: host:port, where port 0 takes any free one, [ipv6]:port, or unix:path.
  // services are not owned and outlive the server. ALREADY_EXISTS if another process has
  // the address, INVALID_ARGUMENT if it isn't one.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(
      const std::string& listen, std::span<grpc::Service* const> services);
  // Shutdown(ZeroDuration) unless that has been.
  ~RpcServer();

  // As given, with the real port.
  const std::string& address() const { return address_; }
  std::shared_ptr<grpc::Channel> InProcessChannel();
  // What grpc.health.v1 says of a service; until then all serve.
  void SetServing(const std::string& service, bool serving);
  // Takes no new calls, and cancels after `grace` those that still run. Returns when all
  // handlers have returned. Idempotent.
  void Shutdown(absl::Duration grace);

 private:
  RpcServer(std::string address, std::unique_ptr<grpc::Server> server);

  const std::string address_;
  const std::unique_ptr<grpc::Server> server_;
};

}  // namespace moe
