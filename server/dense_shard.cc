#include "server/dense_shard.h"

#include <span>
#include <utility>

#include "common/base/status_macros.h"

namespace moe {

DenseShard::DenseShard(Backend& backend, const ModelPlan& plan, const ShardSpec& spec,
                       const v1::Job& job)
    : backend_(backend),
      spec_(spec),
      replicas_(job.training().replicas()),
      parameters_(backend, plan, spec, job) {
  tree_.emplace(replicas_, size());
}

std::string DenseShard::Content() const {
  std::string content(size() * sizeof(float), '\0');
  parameters_.Download(std::span(reinterpret_cast<float*>(content.data()), size()));
  return content;
}

absl::Status DenseShard::AddGradient(TreeNode node, std::vector<float> gradient) {
  return tree_->Add(node, std::move(gradient));
}

const Array<float>& DenseShard::Gradient() {
  if (!gradient_.has_value()) {
    gradient_.emplace(backend_, size());
    gradient_->Upload(tree_->TakeRoot());
  }
  return *gradient_;
}

void DenseShard::AppendSquareSums(std::vector<v1::TensorSquareSum>* sums) {
  const float* gradient = Gradient().data();
  for (int i = 0; i < parameters_.tensors(); ++i) {
    const TensorSpec& tensor = parameters_.tensor(i);
    v1::TensorSquareSum& sum = sums->emplace_back();
    sum.set_tensor(tensor.index);
    if (tensor.own_rate > 0) continue;
    sum.set_sum(backend_.SquareSum(tensor.size(), gradient + parameters_.begin(i)));
  }
}

void DenseShard::Apply(double rate, double scale) {
  const float* gradient = Gradient().data();
  for (int i = 0; i < parameters_.tensors(); ++i) {
    const TensorSpec& tensor = parameters_.tensor(i);
    backend_.OptimizerUpdate(
        parameters_.NextUpdate(i, rate, scale),
        ConstMatrix(gradient + parameters_.begin(i), tensor.rows, tensor.cols),
        parameters_.w(i), parameters_.m(i), parameters_.v(i));
  }
  gradient_.reset();
  tree_.emplace(replicas_, size());
}

absl::Status DenseShard::SetPiece(int64_t piece, uint64_t version,
                                  std::string_view content) {
  const int tensor = static_cast<int>(piece);
  ASSIGN_OR_RETURN(const bool fits, parameters_.SetContent(
                                        tensor, static_cast<int64_t>(version), content));
  return fits
             ? absl::OkStatus()
             : WrongPiece(spec_, piece, content.size(), parameters_.ContentBytes(tensor));
}

void DenseShard::FillStatus(v1::ShardStatus* status) const {
  status->set_shard(spec_.id);
  parameters_.FillStatus(status);
}

}  // namespace moe
