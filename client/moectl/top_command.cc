#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "client/moectl/cluster_command.h"
#include "client/moectl/json.h"
#include "client/moectl/views.h"
#include "common/base/signals.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

// Of each layer.
constexpr int kExpertsShown = 5;

class TopCommand final : public ClusterCommand {
 public:
  std::string name() const override { return "top"; }
  std::string summary() const override {
    return "the cluster at work, refreshed until Ctrl-C";
  }
  std::string details() const override {
    return "Status, members, what servers wait for and the most loaded experts on one "
           "screen. On a\n"
           "terminal it is redrawn, elsewhere each round follows the last; with --json a "
           "round is one\n"
           "line.\n\n"
           "Usage: moectl top [--interval TIME] [--once] [--coordinator HOST:PORT] "
           "[--json]\n\n"
           "Example: moectl top --interval 500ms\n";
  }
  void AddFlags(FlagSet& flags) override {
    flags.Add({.name = "interval",
               .value = &interval_,
               .placeholder = "TIME",
               .help = "How often to ask."});
    flags.Add({.name = "once", .value = &once_, .help = "Ask once and end."});
    ClusterCommand::AddFlags(flags);
  }

  absl::Status Run(std::ostream& out) override {
    if (once_) return Round(out, /*clear=*/false);
    BlockTerminationSignals();
    absl::Notification stop;
    const TerminationHandler handler([&stop](int) { stop.Notify(); });
    const bool terminal = isatty(STDOUT_FILENO) != 0 && !json();
    while (out) {
      RETURN_IF_ERROR(Round(out, terminal));
      if (stop.WaitForNotificationWithTimeout(interval_)) return absl::OkStatus();
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Round(std::ostream& out, bool clear) {
    ASSIGN_OR_RETURN(const v1::GetClusterStatusResponse status, GetClusterStatus());
    std::vector<ServerReport> reports;
    // Servers of a job that is over have left.
    if (status.state().phase() == v1::PHASE_RUNNING) {
      ASSIGN_OR_RETURN(const StatusClient client, this->client());
      reports = GetServerReports(client, status.state());
    }
    if (json()) {
      Json servers = Json::array();
      for (const ServerReport& report : reports) {
        servers.push_back(
            report.status.ok()
                ? ToJson(*report.status)
                : Json({{"server", report.server.server()},
                        {"error", std::string(report.status.status().message())}}));
      }
      const Json round = {{"cluster", ToJson(status)}, {"servers", std::move(servers)}};
      out << round.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n"
          << std::flush;
      return absl::OkStatus();
    }
    std::string text = absl::StrCat(StatusView(status), "\n", MembersView(status));
    for (const ServerReport& report : reports) {
      if (!report.status.ok()) {
        absl::StrAppend(&text, report.status.status().message(), "\n");
      } else if (!report.status->waiting_for().empty()) {
        absl::StrAppend(
            &text, report.server.server(),
            absl::StrFormat(" has waited %.1f s for ", report.status->waiting_seconds()),
            report.status->waiting_for(), "\n");
      }
    }
    const std::vector<LayerLoad> layers = LayerLoads(reports);
    if (!layers.empty()) absl::StrAppend(&text, "\n", ExpertsView(layers, kExpertsShown));
    // To the top left corner, and away with what was below.
    if (clear) out << "\033[H\033[2J";
    out << text << std::flush;
    if (!clear && !once_) out << "\n";
    return absl::OkStatus();
  }

  absl::Duration interval_ = absl::Seconds(2);
  bool once_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeTopCommand() { return std::make_unique<TopCommand>(); }

}  // namespace moe
