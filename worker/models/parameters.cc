#include "worker/models/parameters.h"

#include "glog/logging.h"

namespace moe {

DenseParameters::DenseParameters(Backend& backend, const ModelPlan& plan) {
  for (const ShardSpec& shard : plan.shards) {
    if (shard.kind != ShardKind::kDense) continue;
    Array<float>& memory = shards_.emplace_back(backend, plan.SizeOf(shard));
    float* at = memory.data();
    for (int64_t index : shard.tensors) {
      const TensorSpec& tensor = plan.tensors[index];
      tensors_.push_back({tensor.name, Matrix(at, tensor.rows, tensor.cols)});
      at += tensor.size();
    }
  }
}

Matrix DenseParameters::tensor(const std::string& name) const {
  for (const Named& tensor : tensors_) {
    if (tensor.name == name) return tensor.view;
  }
  LOG(FATAL) << "no dense tensor is named " << name;
}

void DenseParameters::Zero() {
  for (Array<float>& shard : shards_) shard.Zero();
}

}  // namespace moe
