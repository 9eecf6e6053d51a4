#include "server/parameter_block.h"

#include <map>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/io/sha256.h"
#include "common/random/random.h"
#include "server/shard_file.h"

namespace moe {

size_t ParameterBlock::Part::bytes() const {
  size_t bytes = bfloat16 ? sizeof(Bfloat16) : sizeof(float);
  for (int64_t extent : shape) bytes *= extent;
  return bytes;
}

ParameterBlock::ParameterBlock(Backend& backend, const ModelPlan& plan,
                               const ShardSpec& shard, const v1::Job& job)
    : backend_(backend),
      shard_(shard.id),
      seed_(job.seed()),
      optimizer_(job.optimizer()) {
  int64_t floats = 0;
  int64_t halves = 0;
  int64_t first = 0;
  int64_t second = 0;
  for (int64_t t : shard.tensors) {
    const TensorSpec& tensor = plan.tensors[t];
    const TensorState state = StateOf(optimizer_, tensor);
    int64_t& size = tensor.bfloat16 ? halves : floats;
    tensors_.push_back(
        {.spec = tensor, .state = state, .w = size, .m = first, .v = second});
    size += tensor.size();
    first += state.m;
    second += state.v;
  }
  w_ = Array<float>(backend, floats);
  w16_ = Array<Bfloat16>(backend, halves);
  m_ = Array<float>(backend, first);
  v_ = Array<float>(backend, second);
}

OptimizerStep ParameterBlock::NextUpdate(int i, double rate, double scale) {
  Held& tensor = tensors_[i];
  const bool own = tensor.spec.own_rate > 0;
  OptimizerStep step =
      StepOf(tensor.state, own ? tensor.spec.own_rate : rate, own ? 1 : scale);
  step.adam.count = ++tensor.count;
  if (tensor.spec.bfloat16) {
    step.rounding = MakeKey(seed_, Purpose::kRounding,
                            {.step = static_cast<uint64_t>(tensor.count),
                             .tensor = static_cast<uint32_t>(tensor.spec.index)});
  }
  return step;
}

void ParameterBlock::Initialize(uint64_t seed) {
  std::vector<float> host;
  std::vector<Bfloat16> halves;
  for (int i = 0; i < tensors(); ++i) {
    host.resize(tensor(i).size());
    FillInitialValues(seed, tensor(i), host.data());
    if (!tensor(i).bfloat16) {
      backend_.Upload(host.data(), w(i), host.size() * sizeof(float));
    } else {
      halves.clear();
      for (float value : host) halves.push_back(ToBfloat16(value));
      backend_.Upload(halves.data(), w16(i), halves.size() * sizeof(Bfloat16));
    }
    tensors_[i].count = 0;
  }
  m_.Zero();
  v_.Zero();
}

ParameterBlock::Part ParameterBlock::ParametersOf(int i) const {
  const TensorSpec& spec = tensor(i);
  return {spec.name,
          {spec.rows, spec.cols},
          spec.bfloat16 ? static_cast<void*>(w16(i)) : w(i),
          spec.bfloat16};
}

std::vector<ParameterBlock::Part> ParameterBlock::PartsOf(int i) const {
  const TensorSpec& spec = tensor(i);
  std::vector<Part> parts = {ParametersOf(i)};
  if (m(i) != nullptr) parts.push_back({spec.name + "#m", {spec.rows, spec.cols}, m(i)});
  if (v(i) == nullptr) return parts;
  if (tensors_[i].state.second_moment == SecondMoment::kFull) {
    parts.push_back({spec.name + "#v", {spec.rows, spec.cols}, v(i)});
    return parts;
  }
  parts.push_back({spec.name + "#v.rows", {spec.rows}, v(i)});
  if (tensors_[i].state.second_moment == SecondMoment::kFactored) {
    parts.push_back({spec.name + "#v.cols", {spec.cols}, v(i) + spec.rows});
  }
  return parts;
}

absl::Status ParameterBlock::Restore(const SafetensorsFile& file) {
  std::set<std::string> names;
  for (int i = 0; i < tensors(); ++i) {
    for (const Part& part : PartsOf(i)) {
      const absl::StatusOr<SafetensorsEntry> entry =
          FindEntry(file, part.name, part.dtype(), part.shape);
      if (absl::IsNotFound(entry.status())) {
        return absl::FailedPreconditionError(
            absl::StrCat(entry.status().message(),
                         "; is the file of a job with the same model and optimizer?"));
      }
      RETURN_IF_ERROR(entry.status());
      backend_.Upload(entry->data, part.data, part.bytes());
      names.insert(part.name);
    }
    const auto it = file.metadata().find(tensor(i).name + "#count");
    if (it == file.metadata().end() ||
        !absl::SimpleAtoi(it->second, &tensors_[i].count) || tensors_[i].count < 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(file.path(), ": no update count of ", tensor(i).name));
    }
  }
  for (const SafetensorsEntry& entry : file.entries()) {
    if (names.contains(entry.name)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(file.path(), ": has an entry \"", entry.name,
                     "\", for which this job has no use; is the file of a job with the "
                     "same model and optimizer?"));
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::ShardFile> ParameterBlock::Write(const Cut& cut) const {
  std::vector<std::vector<char>> host;
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;
  std::vector<v1::TensorDigest> digests;
  for (int i = 0; i < tensors(); ++i) {
    for (Part& part : PartsOf(i)) {
      const std::vector<char>& bytes = host.emplace_back(Download(part));
      if (part.name == tensor(i).name) digests.push_back(DigestOf(i, bytes));
      entries.push_back({std::move(part.name), part.dtype(), std::move(part.shape),
                         bytes.data(), bytes.size()});
    }
    metadata[tensor(i).name + "#count"] = absl::StrCat(count(i));
  }
  ASSIGN_OR_RETURN(v1::ShardFile file,
                   WriteShardFile(cut, shard_, entries, std::move(metadata)));
  for (v1::TensorDigest& digest : digests) *file.add_tensors() = std::move(digest);
  return file;
}

std::vector<v1::TensorDigest> ParameterBlock::Digests() const {
  std::vector<v1::TensorDigest> digests;
  for (int i = 0; i < tensors(); ++i) {
    digests.push_back(DigestOf(i, Download(ParametersOf(i))));
  }
  return digests;
}

std::vector<char> ParameterBlock::Download(const Part& part) const {
  std::vector<char> bytes(part.bytes());
  backend_.Download(part.data, bytes.data(), bytes.size());
  return bytes;
}

v1::TensorDigest ParameterBlock::DigestOf(int i, std::span<const char> parameters) const {
  Sha256 sha;
  sha.Update(parameters.data(), parameters.size());
  return MakeTensorDigest(tensor(i), sha);
}

}  // namespace moe
