#include "client/moectl/checkpoint_digest.h"
#include "client/moectl/cluster_command.h"
#include "client/moectl/json.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

// Of a running job: between two steps all servers are at one version.
constexpr int kAttempts = 20;

template <typename Message>
Json ListToJson(const std::vector<Message>& messages) {
  Json list = Json::array();
  for (const Message& message : messages) list.push_back(ToJson(message));
  return list;
}

class DigestCommand final : public ClusterCommand {
 public:
  std::string name() const override { return "digest"; }
  std::string summary() const override {
    return "one SHA-256 over all parameters of a model";
  }
  std::string details() const override {
    return "Equal digests mean equal models, whatever the servers and workers. Asks the "
           "servers of the\n"
           "cluster; or with --checkpoint reads a checkpoint's files, compares every "
           "checksum of its\n"
           "manifest, and computes the digest anew.\n\n"
           "Usage: moectl digest [--coordinator HOST:PORT] [--json]\n"
           "       moectl digest --checkpoint DIR [--json]\n\n"
           "Example: moectl digest --checkpoint out/checkpoints\n";
  }
  void AddFlags(FlagSet& flags) override {
    flags.Add(
        {.name = "checkpoint",
         .value = &checkpoint_,
         .placeholder = "DIR",
         .help =
             "A checkpoint's folder, or a folder of checkpoints, of which the last is "
             "taken."});
    ClusterCommand::AddFlags(flags);
  }
  absl::Status Run(std::ostream& out) override {
    return checkpoint_.empty() ? Live(out) : FromFiles(out);
  }

 private:
  absl::Status Live(std::ostream& out) {
    ASSIGN_OR_RETURN(const v1::GetClusterStatusResponse status, GetClusterStatus());
    ASSIGN_OR_RETURN(const StatusClient client, this->client());
    ASSIGN_OR_RETURN(const LiveDigest live,
                     GetLiveDigest(client, status.state(), kAttempts));
    if (json()) {
      out << Print({{"digest", live.digest},
                    {"step", live.version},
                    {"tensors", ListToJson(live.tensors)},
                    {"untouched", ListToJson(live.untouched)}});
    } else {
      out << live.digest << "\n";
    }
    return absl::OkStatus();
  }

  absl::Status FromFiles(std::ostream& out) {
    ASSIGN_OR_RETURN(const CheckpointDigest digest, DigestCheckpoint(checkpoint_));
    if (json()) {
      out << Print({{"digest", digest.digest},
                    {"step", digest.step},
                    {"checkpoint", digest.folder},
                    {"tensors", ListToJson(digest.tensors)},
                    {"untouched", ListToJson(digest.untouched)}});
    } else {
      out << digest.digest << "\n";
    }
    return absl::OkStatus();
  }

  std::string checkpoint_;
};

}  // namespace

std::unique_ptr<Command> MakeDigestCommand() { return std::make_unique<DigestCommand>(); }

}  // namespace moe
