#include "client/moectl/cluster_command.h"
#include "client/moectl/json.h"
#include "client/moectl/views.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

class StatusCommand final : public ClusterCommand {
 public:
  std::string name() const override { return "status"; }
  std::string summary() const override {
    return "phase, progress and checkpoints of the job";
  }
  std::string details() const override {
    return "Says what the cluster does or waits for, how far the job is, how evenly its "
           "experts are\n"
           "loaded, and which checkpoints there are. A failed job's cause stands in "
           "`failure`.\n\n"
           "Usage: moectl status [--coordinator HOST:PORT] [--json]\n\n"
           "Example: moectl status --json | jq .progress.step\n";
  }
  absl::Status Run(std::ostream& out) override {
    ASSIGN_OR_RETURN(const v1::GetClusterStatusResponse status, GetClusterStatus());
    out << (json() ? Print(ToJson(status)) : StatusView(status));
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<Command> MakeStatusCommand() { return std::make_unique<StatusCommand>(); }

}  // namespace moe
