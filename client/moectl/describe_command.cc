#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/moectl/command.h"
#include "client/moectl/json.h"
#include "client/moectl/text_table.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "common/job/describe.h"
#include "common/job/job_file.h"
#include "common/job/model_plan.h"
#include "common/job/placement.h"
#include "common/job/step_memory.h"

namespace moe {
namespace {

// Members, and threads, that a cluster may be asked about.
constexpr int kMost = 100'000;

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
    flags.Add({.name = "servers",
               .value = &servers_,
               .placeholder = "N",
               .help = "Servers, to compute the memory. 0: 1, if --workers is given."});
    flags.Add({.name = "workers",
               .value = &workers_,
               .placeholder = "N",
               .help = "Workers, likewise."});
    flags.Add({.name = "threads",
               .value = &threads_,
               .placeholder = "N",
               .help =
                   "Threads of each server and worker. 0: as many as there is work for, "
                   "groups of experts or replicas."});
    flags.Add({.name = "copies",
               .value = &copies_,
               .placeholder = "N",
               .help = "Copies of each shard, 1 or 2 (coordinator --copies).",
               .minimum = 1});
    flags.Add({.name = "disk",
               .value = &disk_,
               .help = "The servers keep experts on disk (expert_server --disk_dir)."});
    flags.Add({.name = "activation_gib",
               .value = &activation_gib_,
               .placeholder = "N",
               .help = "The servers keep at most so much of hidden activations "
                       "(expert_server --activation_gib). 0: all."});
    flags.Add({.name = "copy_gib",
               .value = &copy_gib_,
               .placeholder = "N",
               .help =
                   "The servers copy at most so much for a checkpoint that they write "
                   "while training goes on (expert_server --copy_gib). 0: what they "
                   "do by default."});
    flags.Add({.name = "json", .value = &json_, .help = "Print JSON, for scripts."});
  }
  absl::Status Run(std::ostream& out) override {
    ASSIGN_OR_RETURN(v1::Job job, ReadJobFile(job_));
    if (vocabulary_ > 0) {
      job.mutable_model()->set_vocabulary(vocabulary_);
      if (job.model().has_tables()) {
        RETURN_IF_ERROR(CheckCandidates(job.model().tables(), vocabulary_));
      }
    }
    const ModelCount count = CountModel(job);
    const ModelStored stored = CountStored(job);
    MemoryNeeds memory;
    if (servers_ == 0 && workers_ == 0) {
      for (const auto& [flag, given] :
           {std::pair("disk", disk_), std::pair("threads", threads_ != 0),
            std::pair("copies", copies_ != 1),
            std::pair("activation_gib", activation_gib_ > 0),
            std::pair("copy_gib", copy_gib_ > 0)}) {
        if (!given) continue;
        return absl::InvalidArgumentError(
            absl::StrCat("--", flag,
                         " is about the memory of a cluster's servers: give --servers N "
                         "or --workers N, too"));
      }
    } else {
      ASSIGN_OR_RETURN(memory, Memory(job));
    }
    if (json_) {
      Json described = ToJson(job, count, stored);
      if (!memory.empty()) described["memory"] = MemoryToJson(memory);
      out << Print(described);
    } else {
      out << View(job, count) << "\n" << View(job, stored);
      if (!memory.empty()) out << "\n" << MemoryView(memory);
    }
    return absl::OkStatus();
  }

 private:
  // Member ids "server/s0" ...
  static std::vector<std::string> Ids(const char* prefix, int count) {
    std::vector<std::string> ids;
    // As wide as the last one, so that they ascend.
    const int width = static_cast<int>(absl::StrCat(count - 1).size());
    for (int i = 0; i < count; ++i) {
      ids.push_back(absl::StrFormat("%s%0*d", prefix, width, i));
    }
    return ids;
  }

  absl::StatusOr<MemoryNeeds> Memory(const v1::Job& job) const {
    for (const auto& [flag, value] :
         {std::pair("servers", servers_), std::pair("workers", workers_),
          std::pair("threads", threads_)}) {
      if (value <= kMost) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("--", flag, " is ", value, "; it must be at most ", kMost));
    }
    if (workers_ > job.training().replicas()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--workers is ", workers_, ", and the job's training.replicas is ",
                       job.training().replicas(), "; a worker has at least one replica"));
    }
    if (job.model().vocabulary() == 0) {
      return absl::InvalidArgumentError(
          "the job takes its number of words from the data, on which its memory depends: "
          "give --vocabulary");
    }
    if (copies_ > 2 || copies_ > std::max(servers_, 1)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--copies is ", copies_,
          "; it must be 1, or 2 with at least 2 --servers, which are to have one each"));
    }
    const std::vector<std::string> servers = Ids("server/s", std::max(servers_, 1));
    const std::vector<std::string> workers = Ids("worker/w", std::max(workers_, 1));
    const auto bytes = [](double gib) {
      return static_cast<int64_t>(std::ldexp(gib, 30));
    };
    std::map<std::string, ServerLimits> limits;
    for (const std::string& server : servers) {
      limits[server] = {.threads = threads_,
                        .tier = disk_,
                        .activation_bytes = bytes(activation_gib_),
                        .copy_bytes = bytes(copy_gib_)};
    }
    std::map<std::string, int> worker_threads;
    for (const std::string& worker : workers) worker_threads[worker] = threads_;
    const ModelPlan plan = MakeModelPlan(job);
    return ComputeMemoryNeeds(job, plan, MakePlacement(plan, servers, copies_),
                              AssignReplicas(job.training().replicas(), workers), limits,
                              worker_threads, /*training=*/true);
  }

  static Json MemoryToJson(const MemoryNeeds& memory) {
    Json members = Json::array();
    for (const auto& [member, need] : memory) {
      members.push_back({{"member", member},
                         {"program", need.program},
                         {"parameters", need.parameters},
                         {"optimizer", need.optimizer},
                         {"gradients", need.gradients},
                         {"activations", need.activations},
                         {"messages", need.messages},
                         {"copies", need.copies},
                         {"total", need.total()}});
    }
    return members;
  }

  static std::string MemoryView(const MemoryNeeds& memory) {
    constexpr auto kRight = TextTable::Align::kRight;
    TextTable table(std::vector<TextTable::Column>{{"MEMORY"},
                                                   {"PARAMETERS", kRight},
                                                   {"OPTIMIZER", kRight},
                                                   {"GRADIENTS", kRight},
                                                   {"ACTIVATIONS", kRight},
                                                   {"MESSAGES", kRight},
                                                   {"COPIES", kRight},
                                                   {"PROGRAM", kRight},
                                                   {"TOTAL", kRight}});
    const auto bytes = [](int64_t count) {
      return count == 0 ? "-" : FormatBytes(static_cast<uint64_t>(count));
    };
    for (const auto& [member, need] : memory) {
      table.AddRow({member, bytes(need.parameters), bytes(need.optimizer),
                    bytes(need.gradients), bytes(need.activations), bytes(need.messages),
                    bytes(need.copies), bytes(need.program), bytes(need.total())});
    }
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

  std::string job_;
  int vocabulary_ = 0;
  int servers_ = 0;
  int workers_ = 0;
  int threads_ = 0;
  int copies_ = 1;
  bool disk_ = false;
  double activation_gib_ = 0;
  double copy_gib_ = 0;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeDescribeCommand() {
  return std::make_unique<DescribeCommand>();
}

}  // namespace moe
