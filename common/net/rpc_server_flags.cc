#include "common/net/rpc_server_flags.h"

#include <string>

#include "absl/flags/flag.h"
#include "absl/time/time.h"
#include "common/base/program.h"
#include "common/base/status_macros.h"
#include "common/net/net_flags.h"

ABSL_FLAG(
    bool, insecure, false,
    "Listen in plaintext, without TLS, on addresses that other machines can reach: on "
    "a network that you trust.");
ABSL_FLAG(
    std::string, health_address, "",
    "Another address, host:port, at which health checks (grpc.health.v1) and nothing "
    "else are answered, in plaintext and to everybody: for probes that have no "
    "certificate, as Kubernetes's. Empty: none; --listen answers them, too.");
ABSL_FLAG(bool, reflection, false,
          "Tell callers (as grpcurl) which services and messages there are.");
ABSL_FLAG(
    bool, channelz, false,
    "Tell callers about the connections and calls of this process (gRPC's channelz).");
ABSL_FLAG(absl::Duration, stop_timeout, absl::Seconds(1),
          "How long calls under way may take to end when this process stops; then they "
          "are cut.");
ABSL_FLAG(
    double, rpc_memory_gib, 0,
    "Memory for messages on their way in and out, in GiB; beyond it the peers with "
    "the largest are cut off. 0: half of what the machine has available at the start.");

namespace moe {

absl::StatusOr<RpcServer::Options> RpcServerOptionsFromFlags(RoleSet own) {
  RpcServer::Options options;
  ASSIGN_OR_RETURN(options.tls, TlsFromFlags(own));
  options.insecure = absl::GetFlag(FLAGS_insecure);
  if (options.insecure && options.tls != nullptr) {
    ExitWithUsageError("--insecure doesn't go with --tls_ca, --tls_cert and --tls_key");
  }
  options.health_address = absl::GetFlag(FLAGS_health_address);
  options.reflection = absl::GetFlag(FLAGS_reflection);
  options.channelz = absl::GetFlag(FLAGS_channelz);
  options.stop_timeout = absl::GetFlag(FLAGS_stop_timeout);
  if (options.stop_timeout < absl::ZeroDuration()) {
    ExitWithUsageError("--stop_timeout must not be negative");
  }
  options.memory_bytes =
      BytesOfGib("rpc_memory_gib", absl::GetFlag(FLAGS_rpc_memory_gib));
  return options;
}

}  // namespace moe
