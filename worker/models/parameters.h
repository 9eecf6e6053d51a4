// The dense parameters (or their gradients) of a job on one device: for each dense shard
// one contiguous array, so that pulling and pushing a shard is one copy.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/job/model_plan.h"
#include "common/kernels/backend.h"

namespace moe {

class DenseParameters {
 public:
  DenseParameters(Backend& backend, const ModelPlan& plan);

  // The tensor named `name` (model_plan.h); aborts if no dense shard has it.
  Matrix tensor(const std::string& name) const;
  // One array for each dense shard, in the plan's order.
  std::vector<Array<float>>& shards() { return shards_; }
  const std::vector<Array<float>>& shards() const { return shards_; }
  void Zero();

 private:
  struct Named {
    std::string name;
    Matrix view;
  };
  std::vector<Array<float>> shards_;
  std::vector<Named> tensors_;
};

}  // namespace moe
