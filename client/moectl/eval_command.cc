#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/moectl/command.h"
#include "client/moectl/json.h"
#include "client/moectl/private_cluster.h"
#include "client/moectl/text_table.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

class EvalCommand final : public Command {
 public:
  std::string name() const override { return "eval"; }
  std::string summary() const override {
    return "perplexity of a checkpoint on held-out text";
  }
  std::string details() const override {
    return "Starts a coordinator, an expert server and a worker of its own on 127.0.0.1, "
           "evaluates with\n"
           "the gate's noise and dropout off, and stops them. A running job isn't "
           "touched.\n\n"
           "Usage: moectl eval --checkpoint DIR --data DIR [--split test|validation] "
           "[--threads N]\n"
           "                   [--bin_dir DIR] [--json]\n\n"
           "Example: moectl eval --checkpoint out/checkpoints --data out/data\n";
  }
  void AddFlags(FlagSet& flags) override {
    AddPrivateClusterFlags(&cluster_, /*required=*/true, flags);
    flags.Add({.name = "json", .value = &json_, .help = "Print JSON, for scripts."});
  }

  absl::Status Run(std::ostream& out) override {
    ASSIGN_OR_RETURN(const TemporaryFolder folder, TemporaryFolder::Make());
    ASSIGN_OR_RETURN(
        const Json result,
        EvaluateInPrivateCluster(cluster_, /*worker_flags=*/{}, folder.path()));
    const Json perplexity = result.value(cluster_.split + "_perplexity", Json());
    Json summary = {{"checkpoint", cluster_.checkpoint},
                    {"split", cluster_.split},
                    {"step", result.value("step", Json())},
                    {"perplexity", perplexity},
                    {"balance", result.value("balance", Json::array())},
                    {"seconds", result.value("seconds", Json())}};
    out << (json_ ? Print(summary) : View(summary));
    return absl::OkStatus();
  }

 private:
  static std::string View(const Json& summary) {
    const auto number = [](const Json& value) {
      return value.is_number() ? absl::StrFormat("%.3f", value.get<double>())
                               : std::string("-");
    };
    std::string text = absl::StrCat(summary["split"].get<std::string>(), " perplexity ",
                                    number(summary["perplexity"]), " after ",
                                    summary["step"].dump(), " steps\n");
    if (summary["balance"].empty()) return text;
    constexpr auto kRight = TextTable::Align::kRight;
    TextTable table(std::vector<TextTable::Column>{{"LAYER", kRight},
                                                   {"CV(IMPORTANCE)", kRight},
                                                   {"CV(LOAD)", kRight},
                                                   {"MAX/MEAN LOAD", kRight},
                                                   {"EXPERTS/TOKEN", kRight},
                                                   {"UNROUTED", kRight}});
    for (const Json& layer : summary["balance"]) {
      const std::string mixture = layer.value("mixture", std::string());
      table.AddRow({absl::StrCat(layer.value("layer", Json()).dump(),
                                 mixture.empty() ? "" : " ", mixture),
                    number(layer.value("cv_importance", Json())),
                    number(layer.value("cv_load", Json())),
                    number(layer.value("max_over_mean_load", Json())),
                    number(layer.value("experts_per_token", Json())),
                    number(layer.value("unrouted_share", Json()))});
    }
    return absl::StrCat(text, "\n", table.ToString());
  }

  PrivateClusterOptions cluster_ = DefaultPrivateCluster();
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeEvalCommand() { return std::make_unique<EvalCommand>(); }

}  // namespace moe
