// TableClient over the servers of a cluster.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/server_set.h"
#include "client/table_client.h"
#include "common/job/model_plan.h"
#include "common/tensor/replica_tree.h"
#include "proto/moe/v1/parameter.pb.h"
#include "proto/moe/v1/table.pb.h"

namespace moe {

class RemoteTables final : public TableClient {
 public:
  // servers and plan must outlive the client.
  RemoteTables(ServerSet& servers, const ModelPlan& plan, int64_t d_model);

  int64_t columns(Table table) const override;
  absl::Status SendPull(uint64_t version, PullFor purpose, Table table,
                        std::span<const int32_t> words) override;
  absl::Status AwaitPull(uint64_t version, Table table, std::span<const int32_t> words,
                         std::span<float> out) override;
  absl::StatusOr<std::vector<double>> Score(uint64_t batch, uint32_t wave,
                                            uint64_t version,
                                            std::span<const ScoreCall> calls) override;

 private:
  // A run of `words` that one shard has.
  struct Run {
    int32_t shard;  // position in plan.shards
    size_t begin;
    size_t count;
  };
  std::vector<Run> RunsOf(Table table, std::span<const int32_t> words) const;
  absl::Status SendPull(uint64_t version, PullFor purpose, const Run& run,
                        std::span<const int32_t> words);
  // Of the tokens that frames of `score` have, [frames][tokens]: -ln p(target).
  absl::StatusOr<std::vector<std::vector<double>>> AwaitScore(
      const v1::ScoreRequest& score);

  ServerSet& servers_;
  const ModelPlan& plan_;
  const int64_t d_model_;
  // Positions in plan.shards, by rows.
  std::vector<int32_t> embedding_;
  std::vector<int32_t> softmax_;
  // Those that host a part of the softmax, ascending.
  std::set<int32_t> softmax_servers_;
  // By shard: who was asked for rows of it last, and what for.
  struct Asked {
    int32_t server = 0;
    PullFor purpose = PullFor::kTraining;
  };
  std::map<int32_t, Asked> asked_;
};

// Adds the gradients of the owned replicas' rows, for every shard of the table, to the close requests
// of the servers that host them. gradients: by replica; `row` is the word.
void AddRowGradients(const ServerSet& servers, const ModelPlan& plan, Table table,
                     uint32_t replicas, const std::map<uint32_t, SparseRows>& gradients,
                     std::span<v1::CloseRequest> requests);

}  // namespace moe
