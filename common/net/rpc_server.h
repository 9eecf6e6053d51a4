// A gRPC server with our settings and limits, TLS, and health (grpc.health.v1).
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/net/tls_credentials.h"

namespace moe {

class RpcServer {
 public:
  struct Options {
    // Null: plaintext, in which it listens on loopback addresses and unix sockets alone, or
    // with `insecure` everywhere.
    std::shared_ptr<const TlsCredentials> tls = nullptr;
    bool insecure = false;
    // host:port at which health checks alone are answered, in plaintext; empty: none.
    std::string health_address;
    // Names of services that have a health of their own besides the server's; serving at
    // first.
    std::vector<std::string> health_of;
    bool reflection = false;
    // Affects all servers of the process that have it set.
    bool channelz = false;
    // What Shutdown() without an argument grants.
    absl::Duration stop_timeout = absl::Seconds(1);
    // Bytes that messages on their way may take; 0: half of what the machine has available.
    int64_t memory_bytes = 0;
    // How many calls one host may have under way; 0: half of what all together may.
    int calls_of_host = 0;
  };

  // listen: host:port, where port 0 takes any free one, [ipv6]:port, or unix:path.
  // services are not owned and outlive the server. ALREADY_EXISTS if another process has
  // the address, INVALID_ARGUMENT if it isn't one, FAILED_PRECONDITION if others could reach it
  // in plaintext.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(
      const std::string& listen, std::span<grpc::Service* const> services,
      Options options);
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(
      const std::string& listen, std::span<grpc::Service* const> services);
  // Shutdown(ZeroDuration) unless that has been.
  ~RpcServer();

  // As given, with the real port.
  const std::string& address() const { return address_; }
  // Of health checks alone; empty if there is none.
  const std::string& health_address() const { return health_address_; }
  std::shared_ptr<grpc::Channel> InProcessChannel();
  // What health checks say of a service of Options::health_of.
  void SetServing(const std::string& service, bool serving);
  // Health checks say NOT_SERVING from here on, of everything; calls go on as before.
  void StopServing();
  // StopServing, then takes no new calls, and cancels after `grace` those that still run.
  // Returns when all handlers have returned. Idempotent.
  void Shutdown(absl::Duration grace);
  // With Options::stop_timeout.
  void Shutdown() { Shutdown(options_.stop_timeout); }

 private:
  RpcServer(Options options, std::string address, std::unique_ptr<grpc::Server> server);
  absl::Status StartHealthServer();
  std::vector<grpc::HealthCheckServiceInterface*> healths() const;

  const Options options_;
  const std::string address_;
  std::string health_address_;
  const std::unique_ptr<grpc::Server> server_;
  // It has no method of its own; gRPC wants one service at least.
  grpc::CallbackGenericService no_methods_;
  std::unique_ptr<grpc::Server> health_server_;
};

}  // namespace moe
