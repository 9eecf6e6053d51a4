// What the commands that ask a running cluster have in common.
#pragma once

#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/moectl/command.h"
#include "client/status_client.h"

namespace moe {

class ClusterCommand : public Command {
 public:
  void AddFlags(FlagSet& flags) override;

 protected:
  ClusterCommand();

  // The errors are those of the --tls flags.
  absl::StatusOr<StatusClient> client() const;
  absl::StatusOr<v1::GetClusterStatusResponse> GetClusterStatus() const;
  const std::string& coordinator() const { return coordinator_; }
  // Another default than 5 s, before AddFlags.
  void set_timeout(absl::Duration timeout) { timeout_ = timeout; }
  bool json() const { return json_; }

 private:
  std::string coordinator_;
  absl::Duration timeout_ = absl::Seconds(5);
  bool json_ = false;
  TlsFiles tls_;
};

// OK, or the errors of the servers that didn't answer.
absl::Status ErrorsOf(std::span<const ServerReport> reports);

}  // namespace moe
