#include "server/parameter_block.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"
#include "common/io/sha256.h"
#include "server/shard_file.h"

namespace moe {
namespace {

absl::StatusOr<std::span<const float>> FindTensor(const SafetensorsFile& file,
                                                  const TensorSpec& tensor,
                                                  const std::string& suffix) {
  ASSIGN_OR_RETURN(const SafetensorsEntry entry, file.Find(tensor.name + suffix));
  if (entry.dtype != "F32" ||
      entry.shape != std::vector<int64_t>{tensor.rows, tensor.cols}) {
    return absl::FailedPreconditionError(
        absl::StrCat(file.path(), ": ", entry.name, " is ", entry.dtype, " [",
                     absl::StrJoin(entry.shape, ", "), "] instead of F32 [", tensor.rows,
                     ", ", tensor.cols, "]"));
  }
  return std::span(static_cast<const float*>(entry.data), tensor.size());
}

}  // namespace

ParameterBlock::ParameterBlock(Backend& backend, const ModelPlan& plan,
                               const ShardSpec& shard, const v1::Optimizer& optimizer)
    : shard_(shard.id), optimizer_(optimizer) {
  for (int64_t t : shard.tensors) {
    tensors_.push_back(plan.tensors[t]);
    begin_.push_back(size_);
    size_ += plan.tensors[t].size();
  }
  count_.assign(tensors_.size(), 0);
  w_ = Array<float>(backend, size_);
  if (optimizer.has_adam()) {
    m_ = Array<float>(backend, size_);
    v_ = Array<float>(backend, size_);
  }
}

OptimizerStep ParameterBlock::NextUpdate(int i, double rate, double scale) {
  OptimizerStep step;
  if (tensors_[i].own_rate > 0) {
    rate = tensors_[i].own_rate;
    scale = 1;
  } else if (optimizer_.has_adam()) {
    step.kind = OptimizerStep::Kind::kAdam;
    step.adam.beta1 = optimizer_.adam().beta1();
    step.adam.beta2 = optimizer_.adam().beta2();
    step.adam.epsilon = optimizer_.adam().epsilon();
  }
  step.adam.rate = static_cast<float>(rate);
  step.adam.count = ++count_[i];
  step.gradient_scale = static_cast<float>(scale);
  return step;
}

void ParameterBlock::Initialize(uint64_t seed) {
  std::vector<float> host(size_);
  for (int i = 0; i < tensors(); ++i) {
    FillInitialValues(seed, tensors_[i], host.data() + begin_[i]);
  }
  w_.Upload(host);
  m_.Zero();
  v_.Zero();
  count_.assign(tensors_.size(), 0);
}

absl::Status ParameterBlock::Restore(const SafetensorsFile& file) {
  size_t expected = 0;
  for (const auto& [suffix, part] :
       {std::pair("", &w_), std::pair("#m", &m_), std::pair("#v", &v_)}) {
    if (part->size() == 0) continue;
    std::vector<float> host(size_);
    for (int i = 0; i < tensors(); ++i) {
      ASSIGN_OR_RETURN(const std::span<const float> values,
                       FindTensor(file, tensors_[i], suffix));
      std::copy(values.begin(), values.end(), host.begin() + begin_[i]);
    }
    part->Upload(host);
    expected += tensors_.size();
  }
  if (file.entries().size() != expected) {
    return absl::FailedPreconditionError(
        absl::StrCat(file.path(), ": has ", file.entries().size(), " entries instead of ",
                     expected, "; is it of the same job?"));
  }
  for (int i = 0; i < tensors(); ++i) {
    const auto it = file.metadata().find(tensors_[i].name + "#count");
    if (it == file.metadata().end() || !absl::SimpleAtoi(it->second, &count_[i]) ||
        count_[i] < 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(file.path(), ": no update count of ", tensors_[i].name));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::ShardFile> ParameterBlock::Write(const Cut& cut) const {
  std::vector<std::vector<float>> host;
  std::vector<SafetensorsEntry> entries;
  for (const auto& [suffix, part] :
       {std::pair("", &w_), std::pair("#m", &m_), std::pair("#v", &v_)}) {
    if (part->size() == 0) continue;
    const std::vector<float>& values = host.emplace_back(size_);
    part->Download(host.back());
    for (int i = 0; i < tensors(); ++i) {
      const TensorSpec& tensor = tensors_[i];
      entries.push_back({tensor.name + suffix,
                         "F32",
                         {tensor.rows, tensor.cols},
                         values.data() + begin_[i],
                         tensor.size() * sizeof(float)});
    }
  }
  std::map<std::string, std::string> metadata;
  for (int i = 0; i < tensors(); ++i) {
    metadata[tensors_[i].name + "#count"] = absl::StrCat(count_[i]);
  }
  ASSIGN_OR_RETURN(v1::ShardFile file,
                   WriteShardFile(cut, shard_, entries, std::move(metadata)));
  for (v1::TensorDigest& digest : DigestsOf(host[0])) {
    *file.add_tensors() = std::move(digest);
  }
  return file;
}

std::vector<v1::TensorDigest> ParameterBlock::Digests() const {
  std::vector<float> host(size_);
  w_.Download(host);
  return DigestsOf(host);
}

std::vector<v1::TensorDigest> ParameterBlock::DigestsOf(
    std::span<const float> parameters) const {
  std::vector<v1::TensorDigest> digests(tensors_.size());
  for (int i = 0; i < tensors(); ++i) {
    const TensorSpec& tensor = tensors_[i];
    Sha256 sha;
    sha.Update(parameters.data() + begin_[i], tensor.size() * sizeof(float));
    digests[i].set_tensor(tensor.index);
    digests[i].set_name(tensor.name);
    digests[i].set_sha256(sha.Hex());
  }
  return digests;
}

}  // namespace moe
