// Training whose steps are timed on demand: for each line on stdin, a number, it takes as many steps and
// writes a line of JSON, {"seconds": of one of them} or {"error": "..."}. Either a whole job without a
// network, or a worker of a cluster.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "common/base/allocator.h"
#include "common/base/program.h"
#include "common/job/job_file.h"
#include "tests/bench/lone_cluster.h"
#include "tests/bench/pace.h"
#include "worker/worker_process.h"

ABSL_FLAG(std::string, job, "", "Job file, of a job that this process trains alone.");
ABSL_FLAG(std::string, coordinator, "", "Instead: join this cluster as the worker w0.");
ABSL_FLAG(std::string, data, "", "Folder with the prepared text.");
ABSL_FLAG(int, threads, 1, "Threads to compute with.");
ABSL_FLAG(bool, serve, false, "As always; for whoever starts all benchmarks alike.");

constexpr char kUsage[] =
    R"(Takes steps of training on demand and times them.

Usage: paced_training --data DIR (--job FILE | --coordinator HOST:PORT) [--threads N])";

namespace moe {
namespace {

constexpr absl::Duration kPatience = absl::Minutes(4);

std::unique_ptr<Worker> StartWorker(Pace& pace) {
  Worker::Options options;
  options.name = "w0";
  options.coordinator = absl::GetFlag(FLAGS_coordinator);
  options.data = absl::GetFlag(FLAGS_data);
  options.threads = absl::GetFlag(FLAGS_threads);
  options.join =
      [&pace](Member::Options join) -> absl::StatusOr<std::unique_ptr<Member>> {
    absl::StatusOr<std::unique_ptr<Member>> member = Member::Join(std::move(join));
    if (!member.ok()) return member.status();
    return KeepPace(*std::move(member), pace);
  };
  return std::make_unique<Worker>(std::move(options));
}

std::unique_ptr<LoneCluster> StartAlone(Pace& pace) {
  LoneClusterOptions options;
  const absl::StatusOr<v1::Job> job = ReadJobFile(absl::GetFlag(FLAGS_job));
  if (!job.ok()) ExitWithUsageError(std::string(job.status().message()));
  options.job = *job;
  options.data = absl::GetFlag(FLAGS_data);
  options.threads = absl::GetFlag(FLAGS_threads);
  absl::StatusOr<std::unique_ptr<LoneCluster>> cluster =
      LoneCluster::Start(options, pace);
  if (!cluster.ok()) {
    std::cerr << "paced_training: " << cluster.status().message() << "\n";
    std::exit(1);
  }
  return *std::move(cluster);
}

nlohmann::json Measure(Pace& pace, const std::string& line) {
  int steps = 0;
  if (!absl::SimpleAtoi(line, &steps) || steps < 1) {
    return {{"error", "not a number of steps: " + line}};
  }
  const absl::StatusOr<absl::Duration> took = pace.Take(steps, kPatience);
  if (!took.ok()) return {{"error", std::string(took.status().message())}};
  return {{"seconds", absl::ToDoubleSeconds(*took) / steps}};
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) {
  moe::KeepFreedMemory();
  moe::ParseCommandLine(argc, argv, kUsage);
  const bool alone = !absl::GetFlag(FLAGS_job).empty();
  if (alone == !absl::GetFlag(FLAGS_coordinator).empty()) {
    moe::ExitWithUsageError("give either --job or --coordinator");
  }
  moe::Pace pace;
  std::unique_ptr<moe::LoneCluster> cluster;
  std::unique_ptr<moe::Worker> worker;
  if (alone) {
    cluster = moe::StartAlone(pace);
  } else {
    worker = moe::StartWorker(pace);
  }
  std::string line;
  while (std::getline(std::cin, line)) {
    std::cout << moe::Measure(pace, line).dump() << std::endl;
  }
  // The job isn't finished and needn't be: whoever started its members ends them.
  pace.End(absl::CancelledError("no more steps are wanted"));
  std::quick_exit(0);
}
