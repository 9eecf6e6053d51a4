#include "tests/cluster/local_cluster.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/coordinator/coordinator.h"
#include "server/expert_server.h"
#include "worker/worker_process.h"

namespace moe {

LocalClusterResult RunLocalCluster(const LocalClusterOptions& options) {
  LocalClusterResult result;
  Coordinator::Options coordinator_options;
  coordinator_options.job = options.job;
  coordinator_options.checkpoint_dir = absl::StrCat(options.folder, "/checkpoints");
  coordinator_options.servers = options.servers;
  coordinator_options.workers = options.workers;
  coordinator_options.resume = options.resume;
  auto coordinator = Coordinator::Start(std::move(coordinator_options));
  if (!coordinator.ok()) {
    result.status = coordinator.status();
    return result;
  }

  std::vector<std::unique_ptr<ExpertServer>> servers;
  for (int s = 0; s < options.servers; ++s) {
    ExpertServer::Options server_options;
    server_options.name = absl::StrCat("s", s);
    server_options.coordinator = (*coordinator)->address();
    server_options.threads = options.threads;
    server_options.make_backend = options.server_backend;
    if (options.disk_bytes > 0) {
      server_options.limits.tier = {.folder = options.folder,
                                    .disk_bytes = options.disk_bytes};
    }
    server_options.limits.activation_bytes = options.activation_bytes;
    server_options.rendezvous_timeout = options.timeout;
    auto server = ExpertServer::Start(std::move(server_options));
    if (!server.ok()) {
      result.status = server.status();
      return result;
    }
    servers.push_back(std::move(*server));
  }

  std::vector<std::unique_ptr<Worker>> workers;
  for (int w = 0; w < options.workers; ++w) {
    Worker::Options worker_options;
    worker_options.name = absl::StrCat("w", w);
    worker_options.coordinator = (*coordinator)->address();
    worker_options.data = options.data;
    worker_options.threads = options.threads;
    worker_options.make_backend = options.worker_backend;
    worker_options.step_timeout = options.timeout;
    workers.push_back(std::make_unique<Worker>(worker_options));
  }

  result.status = (*coordinator)->Wait();
  for (auto& worker : workers) result.status.Update(worker->Wait());
  for (auto& server : servers) {
    result.status.Update(server->Wait());
    const v1::GetServerStatusResponse status = server->Status();
    for (const v1::ShardStatus& shard : status.shards()) {
      result.shards[shard.shard()] = shard;
    }
  }
  const RunSummary summary = (*coordinator)->summary();
  result.digest = summary.digest;
  result.test_perplexity = summary.test_perplexity;
  result.words_per_second = summary.words_per_second;
  return result;
}

}  // namespace moe
