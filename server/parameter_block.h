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
#include "common/job/tensor_state.h"
#include "common/kernels/backend.h"
#include "common/tensor/bfloat16.h"
#include "proto/moe/v1/checkpoint.pb.h"
#include "proto/moe/v1/job.pb.h"
#include "server/shard.h"

namespace moe {

class ParameterBlock {
 public:
  ParameterBlock(Backend& backend, const ModelPlan& plan, const ShardSpec& shard,
                 const v1::Job& job);

  // Tensors are numbered as in ShardSpec.tensors.
  int tensors() const { return static_cast<int>(tensors_.size()); }
  const TensorSpec& tensor(int i) const { return tensors_[i].spec; }
  // Floats of all tensors together, which lie one after another.
  int64_t size() const { return w_.size(); }
  // One of them is null.
  float* w(int i) const { return At(w_, tensors_[i].w, !tensor(i).bfloat16); }
  Bfloat16* w16(int i) const { return At(w16_, tensors_[i].w, tensor(i).bfloat16); }
  // Adam's moments (backend.h); null where the optimizer has none.
  float* m(int i) const { return At(m_, tensors_[i].m, tensors_[i].state.m > 0); }
  float* v(int i) const { return At(v_, tensors_[i].v, tensors_[i].state.v > 0); }
  // Where tensor i begins among the floats.
  int64_t begin(int i) const { return tensors_[i].w; }
  // Updates applied to tensor i.
  int64_t count(int i) const { return tensors_[i].count; }
  // The optimizer's step number count(i) + 1 for tensor i; counts it.
  OptimizerStep NextUpdate(int i, double rate, double scale);

  void Initialize(uint64_t seed);
  absl::Status Restore(const SafetensorsFile& file);
  absl::StatusOr<v1::ShardFile> Write(const Cut& cut) const;
  std::vector<v1::TensorDigest> Digests() const;
  // All floats; out: host, [size()].
  void Download(std::span<float> out) const { w_.Download(out); }

  uint64_t parameter_bytes() const {
    return w_.size() * sizeof(float) + w16_.size() * sizeof(Bfloat16);
  }
  uint64_t optimizer_bytes() const { return (m_.size() + v_.size()) * sizeof(float); }

 private:
  struct Held {
    TensorSpec spec;
    TensorState state;
    // Where its parts begin in w_ or w16_, m_ and v_.
    int64_t w = 0;
    int64_t m = 0;
    int64_t v = 0;
    int64_t count = 0;
  };
  // A part of a tensor as an entry of a shard's file.
  struct Part {
    std::string name;
    std::vector<int64_t> shape;
    // On the backend; floats, or else bf16.
    void* data = nullptr;
    bool bfloat16 = false;

    const char* dtype() const { return bfloat16 ? "BF16" : "F32"; }
    size_t bytes() const;
  };

  template <typename T>
  static T* At(const Array<T>& array, int64_t begin, bool there) {
    return there ? array.data() + begin : nullptr;
  }
  Part ParametersOf(int i) const;
  // The parameters and what the optimizer keeps of tensor i.
  std::vector<Part> PartsOf(int i) const;
  std::vector<char> Download(const Part& part) const;
  v1::TensorDigest DigestOf(int i, std::span<const char> parameters) const;

  Backend& backend_;
  const std::string shard_;
  const uint64_t seed_;
  const v1::Optimizer optimizer_;
  std::vector<Held> tensors_;
  Array<float> w_;
  Array<Bfloat16> w16_;
  Array<float> m_;
  Array<float> v_;
};

}  // namespace moe
