#include "client/moectl/assumed_cluster.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/job/job_file.h"
#include "common/job/placement.h"

namespace moe {
namespace {

// Members, and threads, that a cluster may be asked about.
constexpr int kMost = 100'000;

// As wide as the last one, so that they ascend.
std::vector<std::string> Ids(const char* prefix, int count) {
  std::vector<std::string> ids;
  const int width = static_cast<int>(absl::StrCat(count - 1).size());
  for (int i = 0; i < count; ++i) {
    ids.push_back(absl::StrFormat("%s%0*d", prefix, width, i));
  }
  return ids;
}

int64_t GibBytes(double gib) { return static_cast<int64_t>(std::ldexp(gib, 30)); }

}  // namespace

void AssumedCluster::AddFlags(bool required, FlagSet& flags) {
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
             .help = required
                         ? "Servers."
                         : "Servers, to compute the memory. 0: 1, if --workers is given.",
             .required = required,
             .minimum = required ? 1 : 0});
  flags.Add({.name = "workers",
             .value = &workers_,
             .placeholder = "N",
             .help = required ? "Workers." : "Workers, likewise.",
             .required = required,
             .minimum = required ? 1 : 0});
  flags.Add({.name = "threads",
             .value = &threads_,
             .placeholder = "N",
             .help =
                 "Threads of each server and worker. 0: as many as there is work for, "
                 "groups of experts or replicas."});
  if (!required) {
    flags.Add({.name = "copies",
               .value = &copies_,
               .placeholder = "N",
               .help = "Copies of each shard, 1 or 2 (coordinator --copies).",
               .minimum = 1});
  }
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
             .help = "The servers copy at most so much for a checkpoint that they write "
                     "while training goes on (expert_server --copy_gib). 0: what they "
                     "do by default."});
}

absl::StatusOr<v1::Job> AssumedCluster::ReadJob() const {
  ASSIGN_OR_RETURN(v1::Job job, ReadJobFile(job_));
  if (vocabulary_ > 0) {
    job.mutable_model()->set_vocabulary(vocabulary_);
    if (job.model().has_tables()) {
      RETURN_IF_ERROR(CheckCandidates(job.model().tables(), vocabulary_));
    }
  }
  return job;
}

absl::StatusOr<bool> AssumedCluster::Given() const {
  if (servers_ > 0 || workers_ > 0) return true;
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
  return false;
}

absl::Status AssumedCluster::Check(const v1::Job& job) const {
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
  if (copies_ > 2 || copies_ > servers()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--copies is ", copies_,
        "; it must be 1, or 2 with at least 2 --servers, which are to have one each"));
  }
  return absl::OkStatus();
}

int64_t AssumedCluster::activation_bytes() const { return GibBytes(activation_gib_); }

std::vector<std::string> AssumedCluster::ServerIds(int servers) {
  return Ids("server/s", servers);
}

std::vector<std::string> AssumedCluster::WorkerIds(int workers) {
  return Ids("worker/w", workers);
}

MemoryNeeds AssumedCluster::Memory(const v1::Job& job, const ModelPlan& plan, int servers,
                                   int workers) const {
  std::map<std::string, ServerLimits> limits;
  for (const std::string& server : ServerIds(servers)) {
    limits[server] = {.threads = threads_,
                      .tier = disk_,
                      .activation_bytes = activation_bytes(),
                      .copy_bytes = GibBytes(copy_gib_)};
  }
  const std::vector<std::string> worker_ids = WorkerIds(workers);
  std::map<std::string, int> worker_threads;
  for (const std::string& worker : worker_ids) worker_threads[worker] = threads_;
  return ComputeMemoryNeeds(job, plan, MakePlacement(plan, ServerIds(servers), copies_),
                            AssignReplicas(job.training().replicas(), worker_ids), limits,
                            worker_threads, /*training=*/true);
}

}  // namespace moe
