#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "client/moectl/assumed_cluster.h"
#include "client/moectl/command.h"
#include "client/moectl/plan_view.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "common/job/cost_model.h"
#include "common/job/model_plan.h"
#include "common/job/placement.h"

namespace moe {
namespace {

constexpr double kGiga = 1e9;
// Pairs of a server and a worker, each of which is looked at.
constexpr int64_t kMostPairs = 4'000'000;

// Bytes a second of "25G", "800M" or "10000000" bits a second.
absl::StatusOr<double> ParseBandwidth(const std::string& flag, const std::string& text) {
  std::string number = text;
  double unit = 1;
  constexpr std::string_view kUnits = "KMGT";
  if (!number.empty()) {
    const size_t at = kUnits.find(absl::ascii_toupper(number.back()));
    if (at != std::string_view::npos) {
      unit = std::pow(1000.0, static_cast<double>(at) + 1);
      number.pop_back();
    }
  }
  double value = 0;
  if (!absl::SimpleAtod(number, &value) || !std::isfinite(value) || value <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", flag, " is '", text,
                     "'; it must be bits a second, like 25G, 800M or 10000000"));
  }
  return unit * value / 8;
}

class PlanCommand final : public Command {
 public:
  std::string name() const override { return "plan"; }
  std::string summary() const override {
    return "bytes, memory and time of a job's steps on a cluster that isn't there";
  }
  std::string details() const override {
    return "Reckons what a training step of the job would take: bytes that each host "
           "sends "
           "and receives, by\n"
           "what for; memory, as the coordinator computes it at start; the time of a "
           "step "
           "and what it waits\n"
           "for. Steps that write checkpoints, and evaluations, take longer. Every "
           "server "
           "and worker has a\n"
           "host of its own. Gates are taken to be in balance, words to follow Zipf's "
           "law. "
           "--disk changes the\n"
           "memory alone: the time is that of experts which are in the RAM. How the "
           "model "
           "computes and how it\n"
           "compares with measurements: docs/design/cost.md, docs/results/plan.md.\n\n"
           "A host's speeds are those that it reaches; bazel run "
           "//tests/bench:kernel_bench "
           "shows them: Gemm of\n"
           "2048 x 2048 x 512 for --gflops, ExpertForward of one row (weightGB/s) for "
           "--memory_gbps.\n\n"
           "Usage: moectl plan --job FILE --servers N --workers N [--vocabulary N] "
           "[--json]\n"
           "           [--nic BITS/S] [--latency TIME] [--gflops N] [--server_gflops N]\n"
           "           [--worker_gflops N] [--memory_gbps N] [--message_gbps N] "
           "[--threads N]\n"
           "           [--memory_gib N] [--disk] [--activation_gib N] [--copy_gib N]\n\n"
           "Example: moectl plan --job "
           "deploy/configs/paper/table8-moe-131072-h.textproto "
           "\\\n"
           "             --servers 32 --workers 32 --nic 25G --gflops 1000 --memory_gib "
           "256\n";
  }
  void AddFlags(FlagSet& flags) override {
    cluster_.AddFlags(/*required=*/true, flags);
    flags.Add({.name = "nic",
               .value = &nic_,
               .placeholder = "BITS/S",
               .help = "What each host's network takes in each direction: bits a second, "
                       "with K, M, G or T for thousands, millions ...: 25G, 800M."});
    flags.Add({.name = "latency",
               .value = &latency_,
               .placeholder = "TIME",
               .help = "From one host to another, one way."});
    flags.Add({.name = "gflops",
               .value = &gflops_,
               .placeholder = "N",
               .help = "Floating-point operations of each host, 10^9 a second, all its "
                       "threads together."});
    flags.Add({.name = "server_gflops",
               .value = &server_gflops_,
               .placeholder = "N",
               .help = "Of each server's host. 0: as --gflops."});
    flags.Add({.name = "worker_gflops",
               .value = &worker_gflops_,
               .placeholder = "N",
               .help = "Of each worker's host. 0: as --gflops."});
    flags.Add({.name = "memory_gbps",
               .value = &memory_gbps_,
               .placeholder = "N",
               .help = "What each host reads from its memory, 10^9 bytes a second."});
    flags.Add({.name = "message_gbps",
               .value = &message_gbps_,
               .placeholder = "N",
               .help = "Messages that a host packs and sends, or receives and unpacks, "
                       "beside nothing else: 10^9 bytes a second."});
    flags.Add({.name = "memory_gib",
               .value = &memory_gib_,
               .placeholder = "N",
               .help = "Memory of each host; a job that needs more is refused, with what "
                       "would do. 0: any."});
    flags.Add({.name = "json", .value = &json_, .help = "Print JSON, for scripts."});
  }
  absl::Status Run(std::ostream& out) override {
    ASSIGN_OR_RETURN(const v1::Job job, cluster_.ReadJob());
    RETURN_IF_ERROR(cluster_.Check(job));
    if (int64_t{cluster_.servers()} * cluster_.workers() > kMostPairs) {
      return absl::InvalidArgumentError(
          absl::StrCat("--servers times --workers is more than ", kMostPairs));
    }
    Plan plan;
    ASSIGN_OR_RETURN(plan.speed, Speed());
    const ModelPlan model = MakeModelPlan(job);
    plan.job = job.name();
    plan.servers = AssumedCluster::ServerIds(cluster_.servers());
    plan.workers = AssumedCluster::WorkerIds(cluster_.workers());
    plan.memory = cluster_.Memory(job, model, cluster_.servers(), cluster_.workers());
    RETURN_IF_ERROR(CheckMemory(job, model, plan));

    auto shards = ShardsByServer(model, MakePlacement(model, plan.servers));
    std::vector<std::vector<ShardSpec>> servers;
    for (const std::string& server : plan.servers)
      servers.push_back(std::move(shards[server]));
    std::vector<std::vector<uint32_t>> workers;
    for (auto& [worker, owned] :
         ReplicasByWorker(AssignReplicas(job.training().replicas(), plan.workers))) {
      workers.push_back(owned);
    }
    plan.cost = ComputeStepCost(job, model, servers, workers, plan.speed,
                                cluster_.activation_bytes());
    out << (json_ ? Print(PlanToJson(plan)) : PlanView(plan));
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<ClusterSpeed> Speed() const {
    ClusterSpeed speed;
    for (const auto& [flag, value] :
         {std::pair("gflops", gflops_), std::pair("memory_gbps", memory_gbps_),
          std::pair("message_gbps", message_gbps_)}) {
      if (value > 0) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("--", flag, " is 0; it must be greater"));
    }
    ASSIGN_OR_RETURN(const double nic, ParseBandwidth("nic", nic_));
    const HostSpeed host = {.flops = kGiga * gflops_,
                            .memory = kGiga * memory_gbps_,
                            .messages = kGiga * message_gbps_,
                            .nic = nic};
    speed.server = host;
    speed.worker = host;
    if (server_gflops_ > 0) speed.server.flops = kGiga * server_gflops_;
    if (worker_gflops_ > 0) speed.worker.flops = kGiga * worker_gflops_;
    speed.latency = absl::ToDoubleSeconds(latency_);
    speed.threads = cluster_.threads();
    return speed;
  }

  // FAILED_PRECONDITION: by how much it doesn't fit, and what would.
  absl::Status CheckMemory(const v1::Job& job, const ModelPlan& model,
                           const Plan& plan) const {
    if (memory_gib_ == 0) return absl::OkStatus();
    const auto has = static_cast<int64_t>(std::ldexp(memory_gib_, 30));
    std::vector<std::string> refusals;
    const auto& [server, of_server] = Largest(plan.servers, plan.memory);
    if (of_server.total() > has) {
      const int most = static_cast<int>(model.shards.size());
      refusals.push_back(absl::StrCat(
          Refusal(server, of_server, has), ": ",
          Advice(
              Fewest(cluster_.servers(), most, has,
                     [&](int count) {
                       return Largest(
                                  AssumedCluster::ServerIds(count),
                                  cluster_.Memory(job, model, count, cluster_.workers()))
                           .second.total();
                     }),
              "server",
              "a server has at least one group of experts: raise groups and "
              "training.dense_shards, lower training.lanes or training.unroll, or look "
              "at --disk and --activation_gib")));
    }
    const auto& [worker, of_worker] = Largest(plan.workers, plan.memory);
    if (of_worker.total() > has) {
      refusals.push_back(absl::StrCat(
          Refusal(worker, of_worker, has), ": ",
          Advice(Fewest(cluster_.workers(), job.training().replicas(), has,
                        [&](int count) {
                          return Largest(AssumedCluster::WorkerIds(count),
                                         cluster_.Memory(job, model, cluster_.servers(),
                                                         count))
                              .second.total();
                        }),
                 "worker",
                 "a worker has at least one replica: raise training.waves, or lower "
                 "training.lanes or training.unroll")));
    }
    if (refusals.empty()) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(
        "the job ", job.name(), " doesn't fit. ", absl::StrJoin(refusals, "; and ")));
  }

  static std::pair<std::string, MemoryNeed> Largest(
      const std::vector<std::string>& members, const MemoryNeeds& needs) {
    const auto largest = std::max_element(
        members.begin(), members.end(), [&](const std::string& a, const std::string& b) {
          return needs.at(a).total() < needs.at(b).total();
        });
    return {*largest, needs.at(*largest)};
  }

  static std::string Refusal(const std::string& member, const MemoryNeed& need,
                             int64_t has) {
    return absl::StrCat(member, " needs ", Describe(need), ", ",
                        FormatBytes(need.total() - has), " more than the ",
                        FormatBytes(has), " of --memory_gib");
  }

  // The fewest of more than `have` members, at most `most`, of which none needs more than `has`.
  template <typename Need>
  static std::optional<int> Fewest(int have, int most, int64_t has, const Need& need) {
    int low = have;  // too few
    int high = std::min(most, 2 * have);
    while (high > low && need(high) > has) {
      if (high == most) return std::nullopt;
      low = high;
      high = std::min(most, 2 * high);
    }
    if (high <= low) return std::nullopt;
    while (high - low > 1) {
      const int middle = low + (high - low) / 2;
      (need(middle) > has ? low : high) = middle;
    }
    return high;
  }

  static std::string Advice(std::optional<int> fewest, const char* what,
                            const char* otherwise) {
    if (fewest.has_value()) return absl::StrCat(*fewest, " ", what, "s would do");
    return absl::StrCat("no number of ", what, "s would do, as ", otherwise);
  }

  AssumedCluster cluster_;
  std::string nic_ = "25G";
  absl::Duration latency_ = absl::Microseconds(50);
  double gflops_ = 1000;
  double server_gflops_ = 0;
  double worker_gflops_ = 0;
  double memory_gbps_ = 100;
  double message_gbps_ = 2;
  double memory_gib_ = 0;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakePlanCommand() { return std::make_unique<PlanCommand>(); }

}  // namespace moe
