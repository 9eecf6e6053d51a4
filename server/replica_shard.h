// A replica shard: what one replica carries from step to step, opaque here. Engine thread
// only.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/job/model_plan.h"
#include "server/shard.h"

namespace moe {

class ReplicaShard : public Shard {
 public:
  explicit ReplicaShard(const ShardSpec& spec) : spec_(spec) {}

  // What was pushed last; empty at version 0.
  const std::string& content() const { return content_; }
  // The content from the next Apply on.
  void Push(std::string content) { next_ = std::move(content); }
  void Apply() { content_ = std::move(next_); }

  const ShardSpec& spec() const override { return spec_; }
  void Initialize() override { content_.clear(); }
  absl::Status Restore(const SafetensorsFile& file) override;
  absl::StatusOr<v1::ShardFile> Write(const Cut& cut) const override;
  std::vector<v1::TensorDigest> Digests() const override { return {}; }
  void FillStatus(v1::ShardStatus* status) const override;

 private:
  const ShardSpec spec_;
  std::string content_;
  std::string next_;
};

}  // namespace moe
