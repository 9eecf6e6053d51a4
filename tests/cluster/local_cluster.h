// A whole cluster within one process: coordinator, servers and workers as objects, talking over
// loopback. For tests and benchmarks.
#pragma once

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/kernels/device.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/job.pb.h"
#include "proto/moe/v1/status.pb.h"

namespace moe {

struct LocalClusterOptions {
  v1::Job job;
  int servers = 1;
  int workers = 1;
  // Of each server and each worker.
  int threads = 1;
  // Prepared text.
  std::string data;
  // State and checkpoints; created.
  std::string folder;
  bool resume = false;
  // Of each server: keeps its experts on disk, with at most so many bytes; 0: in memory.
  int64_t disk_bytes = 0;
  // Of each server: hidden activations; 0: all.
  int64_t activation_bytes = 0;
  // Of the servers and of the workers.
  BackendMaker server_backend = MakeBackend;
  BackendMaker worker_backend = MakeBackend;
  absl::Duration timeout = absl::Seconds(60);
};

struct LocalClusterResult {
  // The coordinator's; OK when the job finished.
  absl::Status status;
  std::string digest;
  double test_perplexity = 0;
  double words_per_second = 0;
  // By shard, at the end.
  std::map<std::string, v1::ShardStatus> shards;
};

// Runs the job to its end. Blocks.
LocalClusterResult RunLocalCluster(const LocalClusterOptions& options);

// Writes `sentences` lines of made-up English-like text, a function of the seed: words depend on the
// word before and on a topic that lasts for a sentence, so that there is something to learn.
std::string SyntheticText(uint64_t seed, int sentences);

}  // namespace moe
