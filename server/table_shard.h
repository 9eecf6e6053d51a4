// A table shard: the rows of some words of the embedding or of the softmax. A step updates the rows that
// it touches; each row has its own count of updates. Engine thread only, except where said.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job/model_plan.h"
#include "common/job/tensor_state.h"
#include "common/kernels/backend.h"
#include "common/tensor/replica_tree.h"
#include "proto/moe/v1/job.pb.h"
#include "proto/moe/v1/parameter.pb.h"
#include "proto/moe/v1/table.pb.h"
#include "server/shard.h"

namespace moe {

class TableShard : public Shard {
 public:
  TableShard(Backend& backend, const ModelPlan& plan, const ShardSpec& spec,
             const v1::Job& job);

  // ---- constant; any thread
  int64_t rows() const { return spec_.rows; }
  // Floats of a row as it travels: those of each tensor in turn.
  int64_t columns() const;

  // The rows [index.size(), columns()] as bytes. index: within the shard.
  std::string Content(std::span<const int32_t> index) const;
  // So many rows went to a worker.
  void CountPulled(int64_t rows, bool evaluation);
  // Softmax: of x [T, d], over this shard's words; target: words, host, [T].
  v1::ShardScore Score(ConstMatrix x, std::span<const int32_t> target) const;

  // ---- the end of a step: gradients of all replicas, [square sums,] Apply
  // INVALID_ARGUMENT as ReplicaTree::Add; nothing is changed then.
  absl::Status AddGradient(TreeNode node, SparseRows gradient);
  bool complete() const { return tree_->complete(); }
  void AppendSquareSums(std::vector<v1::TensorSquareSum>* sums);
  // May wait for a cut that is being written.
  void Apply(double rate, double scale);

  const ShardSpec& spec() const override { return spec_; }
  void Initialize() override;
  absl::Status Restore(const SafetensorsFile& file) override;
  std::shared_ptr<ShardCut> BeginCut(CopyBudget& copies) override;
  std::vector<v1::TensorDigest> Digests() const override;
  void FillStatus(v1::ShardStatus* status) const override;
  // A piece is a block of rows.
  int64_t pieces() const override;
  uint64_t PieceVersion(int64_t piece) const override;
  std::string Piece(int64_t piece) const override;
  absl::Status SetPiece(int64_t piece, uint64_t version,
                        std::string_view content) override;

 private:
  struct Part {
    TensorSpec tensor;
    TensorState state;
    Tensor w;
    // Adam's moments; empty where the optimizer has none. By rows v is [rows, 1].
    Tensor m;
    Tensor v;
  };
  // An entry of the shard's file.
  struct Entry {
    std::string name;
    const Tensor* tensor;
    // Of parameters; null for what the optimizer keeps.
    const TensorSpec* parameters = nullptr;
  };
  // The step's gradient, of the rows that it touches.
  struct Gradient {
    std::vector<int32_t> row;
    std::vector<Tensor> of_part;
  };

  // The rows of a piece.
  struct Block {
    int64_t begin = 0;
    int64_t rows = 0;
  };
  Block BlockOf(int64_t piece) const;
  // Calls fn(begin, bytes) for what a piece has of parameters and moments.
  template <typename Fn>
  void ForSlices(Block block, const Fn& fn) const;
  size_t PieceBytes(Block block) const;

  const Gradient& StepGradient();
  // Parameters and moments.
  std::vector<Entry> Entries() const;
  // These rows, ascending, are about to change.
  void Keep(std::span<const int32_t> rows) const;

  Backend& backend_;
  const ShardSpec spec_;
  const uint64_t seed_;
  const v1::Optimizer optimizer_;
  const uint32_t replicas_;
  std::vector<Part> parts_;
  // [rows] updates applied.
  std::vector<int64_t> count_;
  std::optional<ReplicaTree<SparseRows>> tree_;
  // Once the tree is complete and until Apply.
  std::optional<Gradient> gradient_;
  uint64_t rows_pulled_ = 0;
  uint64_t evaluation_rows_pulled_ = 0;
  uint64_t rows_pushed_ = 0;
  // With a count greater than 0.
  uint64_t rows_touched_ = 0;
  // The cut that is being written, if any, and the bytes of a row in each of its entries.
  std::weak_ptr<ShardCut> cut_;
  std::vector<int64_t> cut_row_bytes_;
};

}  // namespace moe
