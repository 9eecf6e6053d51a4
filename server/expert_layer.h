// The groups of one mixture that a server hosts. Joins the replicas' rows once for all
// of them. Engine thread only.
//
// Here and in the shards a wave is one batch of rows. Where a mixture has several calls in each of
// the job's M waves, call c of the job's wave w is wave c M + w.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "common/job/mixtures.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/expert.pb.h"
#include "proto/moe/v1/parameter.pb.h"
#include "server/expert_shard.h"
#include "server/frames.h"

namespace moe {

class ExpertLayer {
 public:
  // shards: at least one, ascending by group.
  ExpertLayer(Backend& backend, const Mixture& mixture,
              std::vector<std::unique_ptr<ExpertShard>> shards);

  const std::vector<std::unique_ptr<ExpertShard>>& shards() const { return shards_; }
  // Gives the shards away, between steps; only the destructor may follow.
  std::vector<std::unique_ptr<ExpertShard>> Release() { return std::move(shards_); }
  const LayerShape& shape() const { return shape_; }

  // inputs: [R]. One reply for each replica. MODE_TRAIN: waves in ascending order. step: of
  // the frames (FrameId). An error is ExpertShard::Forward's.
  absl::StatusOr<std::vector<v1::ForwardReply>> Forward(
      v1::Mode mode, uint64_t step, uint32_t wave,
      std::span<const std::shared_ptr<const ForwardInput>> inputs);
  std::vector<v1::BackwardReply> Backward(
      uint32_t wave, std::span<const std::shared_ptr<const BackwardInput>> inputs);

  // ---- the end of a step
  void AppendSquareSums(std::vector<v1::TensorSquareSum>* sums);
  void Apply(double rate, double scale);

 private:
  Backend& backend_;
  std::vector<std::unique_ptr<ExpertShard>> shards_;
  LayerShape shape_;
  // The step in progress.
  std::vector<WaveRows> waves_;
  uint64_t tokens_ = 0;
};

}  // namespace moe
