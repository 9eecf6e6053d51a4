#include "client/moectl/cluster_command.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace moe {

ClusterCommand::ClusterCommand() {
  const char* const from_environment = std::getenv("MOE_COORDINATOR");
  const bool set = from_environment != nullptr && *from_environment != '\0';
  coordinator_ = set ? from_environment : "127.0.0.1:7070";
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
