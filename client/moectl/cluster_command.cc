#include "client/moectl/cluster_command.h"

#include <cstdlib>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moe {

namespace {

std::string FromEnvironment(const char* name, const std::string& otherwise) {
  const char* const value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : otherwise;
}

}  // namespace

ClusterCommand::ClusterCommand()
    : coordinator_(FromEnvironment("MOE_COORDINATOR", "127.0.0.1:7070")),
      tls_({.ca = FromEnvironment("MOE_TLS_CA", ""),
            .certificate = FromEnvironment("MOE_TLS_CERT", ""),
            .key = FromEnvironment("MOE_TLS_KEY", "")}) {}

absl::StatusOr<StatusClient> ClusterCommand::client() const {
  ASSIGN_OR_RETURN(std::shared_ptr<const TlsCredentials> tls,
                   TlsCredentials::Load(tls_, {Role::kOperator, Role::kObserver}));
  return StatusClient(timeout_, std::move(tls));
}

absl::StatusOr<v1::GetClusterStatusResponse> ClusterCommand::GetClusterStatus() const {
  ASSIGN_OR_RETURN(const StatusClient client, this->client());
  return client.GetClusterStatus(coordinator_);
}

void ClusterCommand::AddFlags(FlagSet& flags) {
  flags.Add({.name = "coordinator",
             .value = &coordinator_,
             .placeholder = "HOST:PORT",
             .help = "The coordinator; or several of which one leads, a:7070,b:7070. The "
                     "environment variable MOE_COORDINATOR sets another default."});
  flags.Add({.name = "timeout",
             .value = &timeout_,
             .placeholder = "TIME",
             .help = "How long to wait for each answer."});
  flags.Add(
      {.name = "tls_ca",
       .value = &tls_.ca,
       .placeholder = "FILE",
       .help = "PEM file with the certificates of those who sign the cluster's. Needed, "
               "with --tls_cert and\n      --tls_key, where the cluster has TLS. Or "
               "MOE_TLS_CA, MOE_TLS_CERT and MOE_TLS_KEY."});
  flags.Add(
      {.name = "tls_cert",
       .value = &tls_.certificate,
       .placeholder = "FILE",
       .help = "PEM file with an operator's certificate, or for what changes nothing an "
               "observer's."});
  flags.Add({.name = "tls_key",
             .value = &tls_.key,
             .placeholder = "FILE",
             .help = "PEM file with its private key."});
  flags.Add({.name = "json", .value = &json_, .help = "Print JSON, for scripts."});
}

absl::Status ErrorsOf(std::span<const ServerReport> reports) {
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string errors;
  for (const ServerReport& report : reports) {
    if (report.status.ok()) continue;
    code = report.status.status().code();
    absl::StrAppend(&errors, errors.empty() ? "" : "\n",
                    report.status.status().message());
  }
  return absl::Status(code, errors);
}

}  // namespace moe
