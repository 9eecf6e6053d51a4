#include "client/moectl/cluster_command.h"
#include "client/moectl/json.h"
#include "client/moectl/views.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

class ShardsCommand final : public ClusterCommand {
 public:
  std::string name() const override { return "shards"; }
  std::string summary() const override {
    return "which server holds which shard, and how large";
  }
  std::string details() const override {
    return "Asks every server: one line a shard with its server, version (optimizer "
           "steps taken),\n"
           "experts, their rows in the last step, and resident bytes. A shard with two "
           "copies\n"
           "(coordinator --copies=2) has a line for each.\n\n"
           "Usage: moectl shards [--coordinator HOST:PORT] [--json]\n\n"
           "Example: moectl shards\n";
  }
  absl::Status Run(std::ostream& out) override {
    ASSIGN_OR_RETURN(const v1::GetClusterStatusResponse status, GetClusterStatus());
    ASSIGN_OR_RETURN(const StatusClient client, this->client());
    const std::vector<ServerReport> reports = GetServerReports(client, status.state());
    if (json()) {
      Json shards = Json::array();
      for (const ServerReport& report : reports) {
        if (!report.status.ok()) continue;
        for (const v1::ShardStatus& shard : report.status->shards()) {
          Json row = ToJson(shard);
          row["server"] = report.server.server();
          shards.push_back(std::move(row));
        }
      }
      out << Print({{"shards", std::move(shards)}});
    } else {
      out << ShardsView(reports);
    }
    return ErrorsOf(reports);
  }
};

}  // namespace

std::unique_ptr<Command> MakeShardsCommand() { return std::make_unique<ShardsCommand>(); }

}  // namespace moe
