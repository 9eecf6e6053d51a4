#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/moectl/assumed_cluster.h"
#include "client/moectl/command.h"
#include "client/moectl/json.h"
#include "client/moectl/memory_view.h"
#include "client/moectl/text_table.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "common/job/describe.h"
#include "common/job/model_plan.h"
#include "common/job/step_memory.h"

namespace moe {
namespace {

class DescribeCommand final : public Command {
 public:
  std::string name() const override { return "describe"; }
  std::string summary() const override {
    return "layers, parameters, multiply-adds and memory of a job";
  }
  std::string details() const override {
    return "Counts as Shazeer et al. (2017) do in tables 7 and 8: multiply-adds of the "
           "forward pass per\n"
           "timestep with k active experts, and without embedding and softmax, which are "
           "listed apart.\n"
           "Then the bytes of parameters and of the optimizer's state on all servers, "
           "for the "
           "experts'\n"
           "matrices, for tables and for all else (dense). With --servers or --workers "
           "also the memory "
           "that training\n"
           "takes of each member, as the coordinator computes it at start.\n\n"
           "Usage: moectl describe --job FILE [--vocabulary N] [--json]\n"
           "           [--servers N] [--workers N] [--threads N] [--copies 1|2]\n"
           "           [--disk] [--activation_gib N] [--copy_gib N]\n\n"
           "Example: moectl describe --job deploy/configs/tiny.textproto\n";
  }
  void AddFlags(FlagSet& flags) override {
    cluster_.AddFlags(/*required=*/false, flags);
    flags.Add({.name = "json", .value = &json_, .help = "Print JSON, for scripts."});
  }
  absl::Status Run(std::ostream& out) override {
    ASSIGN_OR_RETURN(const v1::Job job, cluster_.ReadJob());
    const ModelCount count = CountModel(job);
    const ModelStored stored = CountStored(job);
    MemoryNeeds memory;
    ASSIGN_OR_RETURN(const bool given, cluster_.Given());
    if (given) {
      RETURN_IF_ERROR(cluster_.Check(job));
      memory = cluster_.Memory(job, MakeModelPlan(job), cluster_.servers(),
                               cluster_.workers());
    }
    if (json_) {
      Json described = ToJson(job, count, stored);
      if (!memory.empty()) described["memory"] = MembersToJson(memory);
      out << Print(described);
    } else {
      out << View(job, count) << "\n" << View(job, stored);
      if (!memory.empty()) out << "\n" << MemoryView(memory);
    }
    return absl::OkStatus();
  }

 private:
  static Json MembersToJson(const MemoryNeeds& memory) {
    Json members = Json::array();
    for (const auto& [member, need] : memory) {
      Json described = {{"member", member}};
      described.update(MemoryToJson(need));
      members.push_back(std::move(described));
    }
    return members;
  }

  static std::string MemoryView(const MemoryNeeds& memory) {
    MemoryTable table;
    for (const auto& [member, need] : memory) table.Add(member, need);
    return table.ToString();
  }

  static Json ToJson(const v1::Job& job, const ModelCount& count,
                     const ModelStored& stored) {
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
            {"softmax_parameters", count.softmax_parameters},
            {"stored",
             {{"dense", ToJson(stored.dense)},
              {"tables", ToJson(stored.tables)},
              {"experts", ToJson(stored.experts)}}}};
  }

  static Json ToJson(const StoredCount& count) {
    return {{"parameters", count.parameters},
            {"parameter_bytes", count.parameter_bytes},
            {"optimizer_bytes", count.optimizer_bytes},
            {"bytes_per_parameter", count.bytes_per_parameter()}};
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

  static std::string View(const v1::Job& job, const ModelStored& stored) {
    constexpr auto kRight = TextTable::Align::kRight;
    TextTable table(std::vector<TextTable::Column>{{"STORED"},
                                                   {"PARAMETERS", kRight},
                                                   {"BYTES EACH", kRight},
                                                   {"OF PARAMETERS", kRight},
                                                   {"OF THE OPTIMIZER", kRight},
                                                   {"TOTAL", kRight}});
    const auto add_row = [&](const std::string& what, const StoredCount& count) {
      table.AddRow({what, FormatCount(count.parameters),
                    absl::StrFormat("%.3f", count.bytes_per_parameter()),
                    FormatBytes(count.parameter_bytes),
                    FormatBytes(count.optimizer_bytes), FormatBytes(count.bytes())});
    };
    const StoredCount& dense = stored.dense;
    const StoredCount& tables = stored.tables;
    const StoredCount& experts = stored.experts;
    add_row(job.model().vocabulary() > 0 ? "dense" : "dense, without words", dense);
    if (tables.parameters > 0) add_row("tables", tables);
    add_row("experts", experts);
    StoredCount total = dense;
    for (const StoredCount* part : {&tables, &experts}) {
      total.parameters += part->parameters;
      total.parameter_bytes += part->parameter_bytes;
      total.optimizer_bytes += part->optimizer_bytes;
    }
    add_row("total", total);
    return table.ToString();
  }

  AssumedCluster cluster_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeDescribeCommand() {
  return std::make_unique<DescribeCommand>();
}

}  // namespace moe
