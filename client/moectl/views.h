// Answers of the cluster as text for people.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "client/status_client.h"
#include "proto/moe/v1/status.pb.h"

namespace moe {

// The job, its progress, how its experts are balanced, and its checkpoints.
std::string StatusView(const v1::GetClusterStatusResponse& status);
std::string MembersView(const v1::GetClusterStatusResponse& status);
// Shards of the servers that answered.
std::string ShardsView(std::span<const ServerReport> reports);

struct ExpertRow {
  v1::ExpertStatus expert;
  std::string shard;
  std::string server;
};
// How the rows of one mixture's last step spread over its experts.
struct LayerLoad {
  uint32_t layer = 0;
  std::string mixture;  // as in ExpertStatus
  // The most loaded first.
  std::vector<ExpertRow> experts;
  uint64_t rows = 0;
  uint64_t max_rows = 0;
  // 0 if there are no rows.
  double max_over_mean = 0;
  // Experts without a row.
  uint64_t idle = 0;
};
// By layer and mixture; of the servers that answered.
std::vector<LayerLoad> LayerLoads(std::span<const ServerReport> reports);
// The `top` most loaded experts of each mixture; 0: all.
std::string ExpertsView(std::span<const LayerLoad> layers, int top);

// "RUNNING"
std::string PhaseName(v1::Phase phase);
// "computing 61 %, waiting 30 %, moving 9 %"; empty before anything was measured.
std::string SharesOfTime(const v1::MemberTimes& times);

}  // namespace moe
