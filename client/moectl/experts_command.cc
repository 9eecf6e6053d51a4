#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/moectl/cluster_command.h"
#include "client/moectl/json.h"
#include "client/moectl/private_cluster.h"
#include "client/moectl/views.h"
#include "common/base/status_macros.h"
#include "common/io/file.h"
#include "common/job/mixtures.h"

namespace moe {
namespace {

Json LoadToJson(const LayerLoad& layer, int top) {
  Json json = {{"layer", layer.layer}};
  if (!layer.mixture.empty()) json["mixture"] = layer.mixture;
  json["experts"] = layer.experts.size();
  json["rows"] = layer.rows;
  json["max_rows"] = layer.max_rows;
  json["max_over_mean"] = layer.max_over_mean;
  json["idle"] = layer.idle;
  json["loads"] = Json::array();
  for (const ExpertRow& row : layer.experts) {
    if (top > 0 && json["loads"].size() == static_cast<size_t>(top)) break;
    Json load = ToJson(row.expert);
    load["shard"] = row.shard;
    load["server"] = row.server;
    json["loads"].push_back(std::move(load));
  }
  return json;
}

// "expert 17 of layer 1", or "of layer 1 recurrent", then a line for each context: the gate, and the word in brackets within
// the words around it.
std::string ContextsView(const Json& contexts) {
  std::string text;
  for (const Json& expert : contexts["experts"]) {
    absl::StrAppend(&text, text.empty() ? "" : "\n", "expert ", expert["expert"].dump(),
                    " of ",
                    MixtureName(expert["layer"].get<uint32_t>(),
                                expert.value("mixture", std::string())),
                    "\n");
    for (const Json& context : expert["contexts"]) {
      absl::StrAppend(&text, absl::StrFormat("  %.3f  ", context["gate"].get<double>()),
                      context["before"].get<std::string>(), " [",
                      context["word"].get<std::string>(), "] ",
                      context["after"].get<std::string>(), "\n");
    }
  }
  return text.empty() ? "no expert was chosen for any of the text\n" : text;
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
           "With --top-contexts N it shows what each expert has become good at: the N "
           "places "
           "of held-out\n"
           "text at which its gate is highest. No running job is asked; a cluster of its "
           "own "
           "evaluates the\n"
           "checkpoint.\n\n"
           "Usage: moectl experts [--layer L] [--top N] [--coordinator HOST:PORT] "
           "[--json]\n"
           "       moectl experts --top-contexts N --checkpoint DIR --data DIR [--layer "
           "L] "
           "[--expert E]\n"
           "                      [--split test|validation] [--threads N] [--bin_dir "
           "DIR] "
           "[--json]\n\n"
           "Example: moectl experts --layer 1 --top 10\n"
           "         moectl experts --top-contexts 5 --expert 17 --checkpoint "
           "out/checkpoints --data out/data\n";
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
    flags.Add(
        {.name = "top_contexts",
         .value = &top_contexts_,
         .placeholder = "N",
         .help =
             "For each expert the N places of held-out text with the highest gates."});
    flags.Add({.name = "expert",
               .value = &expert_,
               .placeholder = "E",
               .help = "With --top-contexts: only this expert. -1: all.",
               .minimum = -1});
    AddPrivateClusterFlags(&cluster_, /*required=*/false, flags);
    ClusterCommand::AddFlags(flags);
  }
  absl::Status Run(std::ostream& out) override {
    if (top_contexts_ > 0) return ShowTopContexts(out);
    if (expert_ >= 0 || !cluster_.checkpoint.empty() || !cluster_.data.empty()) {
      return absl::InvalidArgumentError(
          "--expert, --checkpoint and --data go with --top-contexts N");
    }
    return ShowLoads(out);
  }

 private:
  absl::Status ShowLoads(std::ostream& out) {
    ASSIGN_OR_RETURN(const v1::GetClusterStatusResponse status, GetClusterStatus());
    ASSIGN_OR_RETURN(const StatusClient client, this->client());
    const std::vector<ServerReport> reports = GetServerReports(client, status.state());
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

  absl::Status ShowTopContexts(std::ostream& out) {
    if (cluster_.checkpoint.empty() || cluster_.data.empty()) {
      return absl::InvalidArgumentError(
          "--top-contexts needs a --checkpoint and the --data that it was trained on");
    }
    ASSIGN_OR_RETURN(const TemporaryFolder folder, TemporaryFolder::Make());
    const std::string file = folder.path() + "/contexts.json";
    RETURN_IF_ERROR(
        EvaluateInPrivateCluster(cluster_,
                                 {"--contexts_file=" + file,
                                  absl::StrCat("--contexts_per_expert=", top_contexts_),
                                  absl::StrCat("--contexts_layer=", layer_),
                                  absl::StrCat("--contexts_expert=", expert_)},
                                 folder.path())
            .status());
    ASSIGN_OR_RETURN(const std::string text, ReadFile(file));
    const Json contexts = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!contexts.is_object())
      return absl::InternalError("the worker's contexts aren't JSON");
    out << (json() ? Print(contexts) : ContextsView(contexts));
    return absl::OkStatus();
  }

  int layer_ = -1;
  int top_ = 0;
  int top_contexts_ = 0;
  int expert_ = -1;
  PrivateClusterOptions cluster_ = DefaultPrivateCluster();
};

}  // namespace

std::unique_ptr<Command> MakeExpertsCommand() {
  return std::make_unique<ExpertsCommand>();
}

}  // namespace moe
