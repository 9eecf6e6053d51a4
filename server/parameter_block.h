// The parameters of a dense or an expert shard with their optimizer state, on the
// backend.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/io/safetensors.h"
#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/checkpoint.pb.h"
#include "proto/moe/v1/job.pb.h"
#include "server/shard.h"

namespace moe {

class ParameterBlock {
 public:
  ParameterBlock(Backend& backend, const ModelPlan& plan, const ShardSpec& shard,
                 const v1::Optimizer& optimizer);

  // Tensors are numbered as in ShardSpec.tensors.
  int tensors() const { return static_cast<int>(tensors_.size()); }
  const TensorSpec& tensor(int i) const { return tensors_[i]; }
  // Of all tensors together, which lie one after another.
  int64_t size() const { return size_; }
  float* w(int i) const { return w_.data() + begin_[i]; }
  // Adam's moments; null for SGD, unused for a tensor with a rate of its own.
  float* m(int i) const { return m_.size() > 0 ? m_.data() + begin_[i] : nullptr; }
  float* v(int i) const { return v_.size() > 0 ? v_.data() + begin_[i] : nullptr; }
  // Where tensor i begins.
  int64_t begin(int i) const { return begin_[i]; }
  // Updates applied to tensor i.
  int64_t count(int i) const { return count_[i]; }
  // The optimizer's step number count(i) + 1 for tensor i; counts it.
  OptimizerStep NextUpdate(int i, double rate, double scale);

  void Initialize(uint64_t seed);
  absl::Status Restore(const SafetensorsFile& file);
  absl::StatusOr<v1::ShardFile> Write(const Cut& cut) const;
  std::vector<v1::TensorDigest> Digests() const;
  // All parameters; out: host, [size()].
  void Download(std::span<float> out) const { w_.Download(out); }

  uint64_t parameter_bytes() const { return size_ * sizeof(float); }
  uint64_t optimizer_bytes() const { return (m_.size() + v_.size()) * sizeof(float); }

 private:
  std::vector<v1::TensorDigest> DigestsOf(std::span<const float> parameters) const;

  const std::string shard_;
  const v1::Optimizer optimizer_;
  std::vector<TensorSpec> tensors_;
  std::vector<int64_t> begin_;
  std::vector<int64_t> count_;
  int64_t size_ = 0;
  Array<float> w_;
  Array<float> m_;
  Array<float> v_;
};

}  // namespace moe
