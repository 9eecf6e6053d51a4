// A replica shard: what one replica carries from step to step, opaque here. Engine thread
// only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "server/shard.h"

namespace moe {

class ReplicaShard : public Shard {
 public:
  ReplicaShard(Backend& backend, const ShardSpec& spec)
      : backend_(backend), spec_(spec) {}

  // What was pushed last; empty at version 0.
  const std::string& content() const { return *content_; }
  // The content from the next Apply on.
  void Push(std::string content) {
    next_ = std::make_shared<const std::string>(std::move(content));
  }
  void Apply() {
    content_ = std::exchange(next_, Empty());
    ++version_;
  }

  const ShardSpec& spec() const override { return spec_; }
  void Initialize() override {
    content_ = Empty();
    version_ = 0;
  }
  absl::Status Restore(const SafetensorsFile& file) override;
  std::shared_ptr<ShardCut> BeginCut(CopyBudget& copies) override;
  std::vector<v1::TensorDigest> Digests() const override { return {}; }
  void FillStatus(v1::ShardStatus* status) const override;
  int64_t pieces() const override { return 1; }
  uint64_t PieceVersion(int64_t) const override { return version_; }
  std::string Piece(int64_t) const override { return *content_; }
  absl::Status SetPiece(int64_t piece, uint64_t version,
                        std::string_view content) override;

 private:
  using Content = std::shared_ptr<const std::string>;
  static Content Empty() { return std::make_shared<const std::string>(); }

  Backend& backend_;
  const ShardSpec spec_;
  // A cut that is being written may hold the one before.
  Content content_ = Empty();
  // Counts what content_ has been, but not what it was at Initialize.
  uint64_t version_ = 0;
  Content next_ = Empty();
};

}  // namespace moe
