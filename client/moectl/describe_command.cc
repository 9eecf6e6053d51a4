#include "absl/strings/str_cat.h"
#include "client/moectl/command.h"
#include "client/moectl/json.h"
#include "client/moectl/text_table.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "common/job/describe.h"
#include "common/job/job_file.h"

namespace moe {
namespace {

class DescribeCommand final : public Command {
 public:
  std::string name() const override { return "describe"; }
  std::string summary() const override {
    return "layers, parameters and multiply-adds of a job";
  }
  std::string details() const override {
    return "Counts as Shazeer et al. (2017) do in tables 7 and 8: multiply-adds of the "
           "forward pass per\n"
           "timestep with k active experts, and without embedding and softmax, which are "
           "listed apart.\n\n"
           "Usage: moectl describe --job FILE [--vocabulary N] [--json]\n\n"
           "Example: moectl describe --job deploy/configs/tiny.textproto\n";
  }
  void AddFlags(FlagSet& flags) override {
    flags.Add({.name = "job",
               .value = &job_,
               .placeholder = "FILE",
               .help = "The job, in protobuf text format.",
               .required = true});
    flags.Add({.name = "vocabulary",
               .value = &vocabulary_,
               .placeholder = "N",
               .help = "Words, for a job that takes their number from its data. 0: as "
                       "the job says."});
    flags.Add({.name = "json", .value = &json_, .help = "Print JSON, for scripts."});
  }
  absl::Status Run(std::ostream& out) override {
    ASSIGN_OR_RETURN(v1::Job job, ReadJobFile(job_));
    if (vocabulary_ > 0) job.mutable_model()->set_vocabulary(vocabulary_);
    const ModelCount count = CountModel(job);
    out << (json_ ? Print(CountToJson(job, count)) : View(job, count));
    return absl::OkStatus();
  }

 private:
  static Json CountToJson(const v1::Job& job, const ModelCount& count) {
    Json layers = Json::array();
    for (const LayerCount& layer : count.layers) {
      layers.push_back({{"name", layer.name},
                        {"parameters", layer.parameters},
                        {"multiply_adds", layer.multiply_adds}});
    }
    return {{"name", job.name()},
            {"layers", std::move(layers)},
            {"parameters", count.parameters},
            {"multiply_adds", count.multiply_adds},
            {"vocabulary", job.model().vocabulary()},
            {"embedding_parameters", count.embedding_parameters},
            {"softmax_parameters", count.softmax_parameters}};
  }

  static std::string View(const v1::Job& job, const ModelCount& count) {
    constexpr auto kRight = TextTable::Align::kRight;
    TextTable table(std::vector<TextTable::Column>{
        {"LAYER"}, {"PARAMETERS", kRight}, {"MULTIPLY-ADDS", kRight}});
    for (const LayerCount& layer : count.layers) {
      table.AddRow(
          {layer.name, FormatCount(layer.parameters), FormatCount(layer.multiply_adds)});
    }
    table.AddRow(
        {"total", FormatCount(count.parameters), FormatCount(count.multiply_adds)});
    const bool known = job.model().vocabulary() > 0;
    table.AddRow(
        {"embedding", known ? FormatCount(count.embedding_parameters) : "?", "-"});
    table.AddRow({"softmax", known ? FormatCount(count.softmax_parameters) : "?", "-"});
    std::string text = absl::StrCat(job.name(), ", d_model ", job.model().d_model());
    if (known) {
      absl::StrAppend(&text, ", ", FormatCount(job.model().vocabulary()), " words\n");
    } else {
      absl::StrAppend(&text, ", words as in the data\n");
    }
    return absl::StrCat(text, "\n", table.ToString());
  }

  std::string job_;
  int vocabulary_ = 0;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeDescribeCommand() {
  return std::make_unique<DescribeCommand>();
}

}  // namespace moe
