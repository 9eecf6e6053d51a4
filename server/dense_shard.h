// A dense shard: some of the dense parameters, updated once a step with the sum over
// replicas along the replica tree. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "common/tensor/replica_tree.h"
#include "proto/moe/v1/job.pb.h"
#include "proto/moe/v1/parameter.pb.h"
#include "server/parameter_block.h"
#include "server/shard.h"

namespace moe {

class DenseShard : public Shard {
 public:
  DenseShard(Backend& backend, const ModelPlan& plan, const ShardSpec& spec,
             const v1::Job& job);

  int64_t size() const { return parameters_.size(); }
  // The tensors one after another, little-endian floats.
  std::string Content() const;

  // ---- the end of a step: gradients of all replicas, [square sums,] Apply
  // INVALID_ARGUMENT as TreeReduction::Add; nothing is changed then.
  absl::Status AddGradient(TreeNode node, std::vector<float> gradient);
  bool complete() const { return tree_->complete(); }
  void AppendSquareSums(std::vector<v1::TensorSquareSum>* sums);
  void Apply(double rate, double scale);

  const ShardSpec& spec() const override { return spec_; }
  void Initialize() override { parameters_.Initialize(); }
  absl::Status Restore(const SafetensorsFile& file) override {
    return parameters_.Restore(file);
  }
  std::shared_ptr<ShardCut> BeginCut(CopyBudget& copies) override {
    return parameters_.BeginCut(copies);
  }
  std::vector<v1::TensorDigest> Digests() const override { return parameters_.Digests(); }
  void FillStatus(v1::ShardStatus* status) const override;
  int64_t pieces() const override { return parameters_.tensors(); }
  uint64_t PieceVersion(int64_t piece) const override {
    return static_cast<uint64_t>(parameters_.count(static_cast<int>(piece)));
  }
  std::string Piece(int64_t piece) const override {
    return parameters_.Content(static_cast<int>(piece));
  }
  absl::Status SetPiece(int64_t piece, uint64_t version,
                        std::string_view content) override;

 private:
  // Moves the tree's root to the backend.
  const Array<float>& Gradient();

  Backend& backend_;
  const ShardSpec spec_;
  const uint32_t replicas_;
  ParameterBlock parameters_;
  std::optional<TreeReduction> tree_;
  // [size()] once the tree is complete and until Apply.
  std::optional<Array<float>> gradient_;
};

}  // namespace moe
