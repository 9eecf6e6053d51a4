// The parameters of a dense or an expert shard with their optimizer state, on the
// backend.
//
// With a capacity tier the experts' matrices lie there, each with its optimizer state. One that
// no step has updated has the initial values, which follow from the seed: it needs no memory
// before it is touched, and no place in files and digests.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
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
#include "proto/moe/v1/status.pb.h"
#include "server/capacity_tier.h"
#include "server/copy_budget.h"
#include "server/shard_cut.h"

namespace moe {

class ParameterBlock {
 public:
  // tier: of the server, outlives the block; null: everything is kept in memory.
  ParameterBlock(Backend& backend, const ModelPlan& plan, const ShardSpec& shard,
                 const v1::Job& job, CapacityTier* tier = nullptr);
  ~ParameterBlock();
  ParameterBlock(const ParameterBlock&) = delete;
  ParameterBlock& operator=(const ParameterBlock&) = delete;
  // What it reserves of a tier.
  static int64_t AddressBytes(const ModelPlan& plan, const ShardSpec& shard,
                              const v1::Job& job);

  // Tensors are numbered as in ShardSpec.tensors.
  int tensors() const { return static_cast<int>(tensors_.size()); }
  const TensorSpec& tensor(int i) const { return tensors_[i].spec; }
  // Floats of all tensors together, which lie one after another.
  int64_t size() const { return w_.size(); }
  // One of them is null. Of a tensor that has no memory yet only the address is of use.
  float* w(int i) const { return tensors_[i].w; }
  Bfloat16* w16(int i) const { return tensors_[i].w16; }
  // Adam's moments (backend.h); null where the optimizer has none.
  float* m(int i) const { return tensors_[i].m; }
  float* v(int i) const { return tensors_[i].v; }
  // Where tensor i begins among the floats.
  int64_t begin(int i) const { return tensors_[i].begin; }
  // Updates applied to tensor i.
  int64_t count(int i) const { return tensors_[i].count; }
  // The optimizer's step number count(i) + 1 for tensor i, which may be changed from here on; counts
  // it. May wait for a cut that is being written.
  OptimizerStep NextUpdate(int i, double rate, double scale);

  bool has_memory(int i) const { return tensors_[i].has_memory; }
  // Tensor i will be needed: gives it memory and its initial values, where it has none.
  // An error is CapacityTier::Allocate's. Different tensors from different threads.
  absl::Status Touch(int i);
  // Tensor i will be needed soon: begins to read it, if it is in the tier and not in RAM. Any thread.
  void Prefetch(int i) const;
  // Values of tensor i as it begins, on the backend: [rows, cols], floats or bf16.
  void GetInitialValues(int i, void* out) const;

  // The state before the first step.
  void Initialize();
  absl::Status Restore(const SafetensorsFile& file);
  // As Shard's.
  std::shared_ptr<ShardCut> BeginCut(CopyBudget& copies);
  // Of all tensors but the untouched ones.
  std::vector<v1::TensorDigest> Digests() const;
  // Ascending.
  std::vector<v1::UntouchedTensors> Untouched() const;
  // Of tensor i as it travels: the parameters and what the optimizer keeps, one after another.
  std::string Content(int i) const;
  // What Content and count said elsewhere. False, and nothing changed, if it isn't of that size; an
  // error is CapacityTier::Allocate's.
  absl::StatusOr<bool> SetContent(int i, int64_t count, std::string_view content);
  // Bytes of tensor i as it travels.
  size_t ContentBytes(int i) const;
  // All floats; out: host, [size()].
  void Download(std::span<float> out) const { w_.Download(out); }

  // The fields about bytes.
  void FillStatus(v1::ShardStatus* status) const;

 private:
  struct Held {
    TensorSpec spec;
    TensorState state;
    int64_t begin = 0;
    float* w = nullptr;
    Bfloat16* w16 = nullptr;
    float* m = nullptr;
    float* v = nullptr;
    int64_t count = 0;
    // In the tier, from `slot` on.
    char* slot = nullptr;
    bool has_memory = true;

    void* parameters() const { return w != nullptr ? static_cast<void*>(w) : w16; }
    int64_t bytes() const { return state.parameter_bytes + state.optimizer_bytes(); }
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

  // Whether it has the initial values for sure, and so no place in files and digests.
  static bool IsUntouched(const Held& tensor) {
    return tensor.spec.of_expert && tensor.count == 0;
  }
  absl::Status Allocate(Held& tensor);
  // Those that files and digests have.
  std::vector<int> Updated() const;
  void Initialize(int i);
  Part ParametersOf(int i) const;
  // The parameters and what the optimizer keeps of tensor i.
  std::vector<Part> PartsOf(int i) const;
  // The part's bytes where they lie in the tier, else in `copy`.
  std::span<const char> OnHost(int i, const Part& part, std::vector<char>* copy) const;
  v1::TensorDigest DigestOf(int i, std::span<const char> parameters) const;

  Backend& backend_;
  const std::string shard_;
  const uint64_t seed_;
  const v1::Optimizer optimizer_;
  CapacityTier* const tier_;
  std::vector<Held> tensors_;
  // Of the tensors that aren't in the tier.
  Array<float> w_;
  Array<Bfloat16> w16_;
  Array<float> m_;
  Array<float> v_;
  // The cut that is being written, if any, and the first of its entries that is of each tensor, and
  // the end.
  std::weak_ptr<ShardCut> cut_;
  std::vector<int32_t> cut_entry_;  // [tensors() + 1]
};

}  // namespace moe
