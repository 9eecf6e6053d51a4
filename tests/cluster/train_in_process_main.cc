// Trains a job with coordinator, servers and workers in this one process and prints the result as
// JSON: for comparing with a cluster of processes, in bits and in speed.
#include <cstdio>
#include <iostream>
#include <string>

#include "absl/flags/flag.h"
#include "common/base/allocator.h"
#include "common/base/program.h"
#include "common/job/job_file.h"
#include "nlohmann/json.hpp"
#include "tests/cluster/local_cluster.h"

ABSL_FLAG(std::string, job, "", "Job file.");
ABSL_FLAG(std::string, data, "", "Folder with the prepared text.");
ABSL_FLAG(std::string, out, "", "Folder for checkpoints.");
ABSL_FLAG(int, servers, 1, "Expert servers.");
ABSL_FLAG(int, workers, 1, "Workers.");
ABSL_FLAG(int, threads, 1, "Threads of each server and each worker.");

constexpr char kUsage[] =
    R"(Trains a job within one process and prints the result as JSON.

Usage: train_in_process --job FILE --data DIR --out DIR [--servers N] [--workers N] [--threads N])";

int main(int argc, char** argv) {
  moe::KeepFreedMemory();
  moe::ParseCommandLine(argc, argv, kUsage);
  const auto job = moe::ReadJobFile(absl::GetFlag(FLAGS_job));
  if (!job.ok()) moe::ExitWithUsageError(std::string(job.status().message()));
  moe::LocalClusterOptions options;
  options.job = *job;
  options.data = absl::GetFlag(FLAGS_data);
  options.folder = absl::GetFlag(FLAGS_out);
  options.servers = absl::GetFlag(FLAGS_servers);
  options.workers = absl::GetFlag(FLAGS_workers);
  options.threads = absl::GetFlag(FLAGS_threads);
  const moe::LocalClusterResult result = moe::RunLocalCluster(options);
  if (!result.status.ok()) {
    std::fprintf(stderr, "train_in_process: %s\n",
                 std::string(result.status.message()).c_str());
    return 1;
  }
  const nlohmann::json json = {{"digest", result.digest},
                               {"test_perplexity", result.test_perplexity},
                               {"words_per_second", result.words_per_second}};
  std::cout << json.dump() << "\n";
  return 0;
}
