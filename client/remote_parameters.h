// ParameterClient over the servers of a cluster.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/parameter_client.h"
#include "client/server_set.h"
#include "common/job/model_plan.h"

namespace moe {

class RemoteParameters final : public ParameterClient {
 public:
  // servers and plan must outlive the client. clip_norm: of the job; 0: no clipping.
  RemoteParameters(ServerSet& servers, const ModelPlan& plan,
                   std::vector<uint32_t> owned_replicas, uint32_t replicas,
                   double clip_norm);

  absl::Status PullDense(uint64_t version,
                         std::span<const std::span<float>> shards) override;
  absl::StatusOr<std::string> PullReplicaState(uint64_t version,
                                               uint32_t replica) override;
  absl::StatusOr<StepClosed> Close(StepClose close) override;

 private:
  absl::Status SendPull(uint64_t version, int32_t shard);
  // Asks another server that has the shard if the one that was asked is lost.
  absl::StatusOr<std::string> AwaitPull(uint64_t version, int32_t shard,
                                        absl::Time deadline);
  // The close requests of all servers, without step, rate and cut.
  std::vector<v1::CloseRequest> MakeCloseRequests(StepClose close) const;
  // Norm over all gradients, from the servers' answers to the close; [servers], none of those that are
  // lost.
  absl::StatusOr<double> GradientNorm(
      std::span<const std::optional<v1::CloseResponse>> responses) const;

  ServerSet& servers_;
  const ModelPlan& plan_;
  const std::vector<uint32_t> owned_replicas_;
  const uint32_t replicas_;
  const double clip_norm_;
  // Positions in plan.shards.
  std::vector<int32_t> dense_shards_;
  // By shard: who was asked for it last.
  std::map<int32_t, int32_t> asked_;
};

}  // namespace moe
