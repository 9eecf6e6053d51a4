#include <algorithm>

#include "absl/strings/str_cat.h"
#include "client/moectl/cluster_command.h"
#include "client/moectl/json.h"
#include "client/moectl/views.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

Json LoadToJson(const LayerLoad& layer, int top) {
  Json json = {{"layer", layer.layer},
               {"experts", layer.experts.size()},
               {"rows", layer.rows},
               {"max_rows", layer.max_rows},
               {"max_over_mean", layer.max_over_mean},
               {"idle", layer.idle},
               {"loads", Json::array()}};
  for (const ExpertRow& row : layer.experts) {
    if (top > 0 && json["loads"].size() == static_cast<size_t>(top)) break;
    Json load = ToJson(row.expert);
    load["shard"] = row.shard;
    load["server"] = row.server;
    json["loads"].push_back(std::move(load));
  }
  return json;
}

class ExpertsCommand final : public ClusterCommand {
 public:
  std::string name() const override { return "experts"; }
  std::string summary() const override { return "how many rows each expert gets"; }
  std::string details() const override {
    return "Asks every server for the rows that each of its experts got in the last step "
           "and in all,\n"
           "and sorts them by load. `updates` counts an expert's own optimizer steps: it "
           "isn't updated\n"
           "in a step without rows.\n\n"
           "Usage: moectl experts [--layer L] [--top N] [--coordinator HOST:PORT] "
           "[--json]\n\n"
           "Example: moectl experts --layer 1 --top 10\n";
  }
  void AddFlags(FlagSet& flags) override {
    flags.Add({.name = "layer",
               .value = &layer_,
               .placeholder = "L",
               .help = "Only this layer, counted from 0 as in the job. -1: all.",
               .minimum = -1});
    flags.Add({.name = "top",
               .value = &top_,
               .placeholder = "N",
               .help = "Only the N most loaded experts of each layer. 0: all."});
    ClusterCommand::AddFlags(flags);
  }
  absl::Status Run(std::ostream& out) override {
    ASSIGN_OR_RETURN(const v1::GetClusterStatusResponse status, GetClusterStatus());
    const std::vector<ServerReport> reports = GetServerReports(client(), status.state());
    std::vector<LayerLoad> layers = LayerLoads(reports);
    if (layer_ >= 0) {
      std::erase_if(layers, [this](const LayerLoad& layer) {
        return layer.layer != static_cast<uint32_t>(layer_);
      });
      if (layers.empty()) {
        RETURN_IF_ERROR(ErrorsOf(reports));
        return absl::NotFoundError(absl::StrCat("layer ", layer_, " has no experts"));
      }
    }
    if (json()) {
      Json list = Json::array();
      for (const LayerLoad& layer : layers) list.push_back(LoadToJson(layer, top_));
      out << Print({{"layers", std::move(list)}});
    } else {
      out << ExpertsView(layers, top_);
    }
    return ErrorsOf(reports);
  }

 private:
  int layer_ = -1;
  int top_ = 0;
};

}  // namespace

std::unique_ptr<Command> MakeExpertsCommand() {
  return std::make_unique<ExpertsCommand>();
}

}  // namespace moe
