#include "client/moectl/cluster_command.h"
#include "client/moectl/json.h"
#include "client/moectl/views.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

class MembersCommand final : public ClusterCommand {
 public:
  std::string name() const override { return "members"; }
  std::string summary() const override {
    return "servers and workers, and what each waits for";
  }
  std::string details() const override {
    return "One line a member: where it runs, when the coordinator last heard of it, "
           "what\n"
           "the job is computed to need of its memory (which the members of a machine "
           "share), where its\n"
           "time goes, and what it waits for at present. --json adds the numerics "
           "fingerprint.\n\n"
           "Usage: moectl members [--coordinator HOST:PORT] [--json]\n\n"
           "Example: moectl members --coordinator node0:7070\n";
  }
  absl::Status Run(std::ostream& out) override {
    ASSIGN_OR_RETURN(const v1::GetClusterStatusResponse status, GetClusterStatus());
    out << (json() ? Print({{"members", ToJson(status)["members"]}})
                   : MembersView(status));
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<Command> MakeMembersCommand() {
  return std::make_unique<MembersCommand>();
}

}  // namespace moe
