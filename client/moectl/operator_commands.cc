// What changes a job that runs: checkpoint, scale, drain.
#include "absl/strings/str_cat.h"
#include "client/moectl/cluster_command.h"
#include "client/moectl/json.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

class CheckpointCommand final : public ClusterCommand {
 public:
  CheckpointCommand() { set_timeout(absl::Minutes(10)); }
  std::string name() const override { return "checkpoint"; }
  std::string summary() const override { return "take a checkpoint now"; }
  std::string details() const override {
    return "Of a job that trains: at the end of a step that is soon to begin. Returns "
           "when the "
           "checkpoint\nis committed, and prints where it is and its digest.\n\n"
           "Usage: moectl checkpoint [--coordinator HOST:PORT] [--json]\n\n"
           "Example: moectl checkpoint --coordinator head:7070\n";
  }
  absl::Status Run(std::ostream& out) override {
    ASSIGN_OR_RETURN(const StatusClient client, this->client());
    ASSIGN_OR_RETURN(const v1::TakeCheckpointResponse taken,
                     client.TakeCheckpoint(coordinator()));
    const v1::CheckpointStatus& checkpoint = taken.checkpoint();
    if (json()) {
      out << Print(ToJson(checkpoint));
    } else {
      out << checkpoint.folder() << "  digest " << checkpoint.digest() << "\n";
    }
    return absl::OkStatus();
  }
};

class ScalingCommand : public ClusterCommand {
 protected:
  absl::Status Ask(const v1::ScaleRequest& request, std::ostream& out) {
    ASSIGN_OR_RETURN(const StatusClient client, this->client());
    ASSIGN_OR_RETURN(const v1::ScaleResponse response,
                     client.Scale(coordinator(), request));
    if (json()) {
      out << Print(ToJson(response));
    } else {
      out << response.plan() << "\n";
    }
    return absl::OkStatus();
  }
};

class ScaleCommand final : public ScalingCommand {
 public:
  std::string name() const override { return "scale"; }
  std::string summary() const override {
    return "change how many servers and workers a job has";
  }
  std::string details() const override {
    return "Then start further servers or workers as the others were. The job changes "
           "over at a "
           "checkpoint,\nwhich is taken as soon as all are there; no step is lost, and "
           "the result is "
           "the same. Of members\nthat are too many, those whose names come last leave. "
           "Refused, with "
           "the figures, if those that\nstay don't have the memory.\n\n"
           "Usage: moectl scale [--servers N] [--workers N] [--coordinator HOST:PORT] "
           "[--json]\n\n"
           "Example: moectl scale --servers 3\n";
  }
  void AddFlags(FlagSet& flags) override {
    flags.Add({.name = "servers",
               .value = &servers_,
               .placeholder = "N",
               .help = "How many servers. 0: as many as now."});
    flags.Add(
        {.name = "workers",
         .value = &workers_,
         .placeholder = "N",
         .help = "How many workers, at most the job's replicas. 0: as many as now."});
    ClusterCommand::AddFlags(flags);
  }
  absl::Status Run(std::ostream& out) override {
    if (servers_ < 0 || workers_ < 0 || servers_ + workers_ == 0) {
      return absl::InvalidArgumentError(
          "give --servers N or --workers N, or both, of at least 1");
    }
    v1::ScaleRequest request;
    request.set_servers(static_cast<uint32_t>(servers_));
    request.set_workers(static_cast<uint32_t>(workers_));
    return Ask(request, out);
  }

 private:
  int servers_ = 0;
  int workers_ = 0;
};

class DrainCommand final : public ScalingCommand {
 public:
  std::string name() const override { return "drain"; }
  std::string summary() const override { return "let a member leave a job"; }
  std::string details() const override {
    return "Its shards or replicas go to the others at a checkpoint, which is taken at "
           "once; then "
           "its process\nends with status 0. Refused, with the figures, if the others "
           "don't have the "
           "memory.\n\n"
           "Usage: moectl drain --member MEMBER [--coordinator HOST:PORT] [--json]\n\n"
           "Example: moectl drain --member server/s1\n";
  }
  void AddFlags(FlagSet& flags) override {
    flags.Add({.name = "member",
               .value = &member_,
               .placeholder = "MEMBER",
               .help = "server/NAME or worker/NAME, as `moectl members` lists them.",
               .required = true});
    ClusterCommand::AddFlags(flags);
  }
  absl::Status Run(std::ostream& out) override {
    v1::ScaleRequest request;
    request.add_drain(member_);
    return Ask(request, out);
  }

 private:
  std::string member_;
};

}  // namespace

std::unique_ptr<Command> MakeCheckpointCommand() {
  return std::make_unique<CheckpointCommand>();
}
std::unique_ptr<Command> MakeScaleCommand() { return std::make_unique<ScaleCommand>(); }
std::unique_ptr<Command> MakeDrainCommand() { return std::make_unique<DrainCommand>(); }

}  // namespace moe
