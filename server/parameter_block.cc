#include "server/parameter_block.h"

#include <algorithm>
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
namespace {

// Where the moments of a tensor lie in the capacity tier, behind its parameters, and the end.
struct Slot {
  explicit Slot(const TensorState& state) : bytes(state.parameter_bytes) {
    // Parts that lie a power of two apart share the sets of a cache: the update would be several
    // times slower.
    constexpr int64_t kLine = 64;
    constexpr int64_t kGap = 5 * kLine;
    const auto after = [](int64_t end) {
      return (end + kLine - 1) / kLine * kLine + kGap;
    };
    const auto floats = static_cast<int64_t>(sizeof(float));
    if (state.m > 0) {
      m = after(bytes);
      bytes = m + state.m * floats;
    }
    if (state.v > 0) {
      v = after(bytes);
      bytes = v + state.v * floats;
    }
  }

  int64_t m = 0;
  int64_t v = 0;
  int64_t bytes = 0;
};

}  // namespace

size_t ParameterBlock::Part::bytes() const {
  size_t bytes = bfloat16 ? sizeof(Bfloat16) : sizeof(float);
  for (int64_t extent : shape) bytes *= extent;
  return bytes;
}

ParameterBlock::ParameterBlock(Backend& backend, const ModelPlan& plan,
                               const ShardSpec& shard, const v1::Job& job,
                               CapacityTier* tier)
    : backend_(backend),
      shard_(shard.id),
      seed_(job.seed()),
      optimizer_(job.optimizer()),
      tier_(tier) {
  int64_t floats = 0;
  int64_t halves = 0;
  int64_t first = 0;
  int64_t second = 0;
  for (int64_t t : shard.tensors) {
    Held& tensor = tensors_.emplace_back();
    tensor.spec = plan.tensors[t];
    tensor.state = StateOf(optimizer_, tensor.spec);
    if (tier_ != nullptr && tensor.spec.of_expert) {
      tensor.slot = tier_->Reserve(Slot(tensor.state).bytes);
      tensor.has_memory = false;
      continue;
    }
    tensor.begin = floats;
    (tensor.spec.bfloat16 ? halves : floats) += tensor.spec.size();
    first += tensor.state.m;
    second += tensor.state.v;
  }
  w_ = Array<float>(backend, floats);
  w16_ = Array<Bfloat16>(backend, halves);
  m_ = Array<float>(backend, first);
  v_ = Array<float>(backend, second);

  float* w = w_.data();
  Bfloat16* w16 = w16_.data();
  float* m = m_.data();
  float* v = v_.data();
  const auto take = [](auto*& next, int64_t size) {
    auto* const begin = size > 0 ? next : nullptr;
    next += size;
    return begin;
  };
  for (Held& tensor : tensors_) {
    const int64_t size = tensor.spec.size();
    if (tensor.slot != nullptr) {
      const Slot slot(tensor.state);
      if (tensor.spec.bfloat16) {
        tensor.w16 = reinterpret_cast<Bfloat16*>(tensor.slot);
      } else {
        tensor.w = reinterpret_cast<float*>(tensor.slot);
      }
      if (tensor.state.m > 0) tensor.m = reinterpret_cast<float*>(tensor.slot + slot.m);
      if (tensor.state.v > 0) tensor.v = reinterpret_cast<float*>(tensor.slot + slot.v);
      continue;
    }
    if (tensor.spec.bfloat16) {
      tensor.w16 = take(w16, size);
    } else {
      tensor.w = take(w, size);
    }
    tensor.m = take(m, tensor.state.m);
    tensor.v = take(v, tensor.state.v);
  }
}

ParameterBlock::~ParameterBlock() {
  for (const Held& tensor : tensors_) {
    if (tensor.slot == nullptr) continue;
    tier_->Release(tensor.slot, CapacityTier::InPages(Slot(tensor.state).bytes));
  }
}

int64_t ParameterBlock::AddressBytes(const ModelPlan& plan, const ShardSpec& shard,
                                     const v1::Job& job) {
  int64_t bytes = 0;
  for (int64_t t : shard.tensors) {
    const TensorSpec& tensor = plan.tensors[t];
    if (!tensor.of_expert) continue;
    bytes += CapacityTier::InPages(Slot(StateOf(job.optimizer(), tensor)).bytes);
  }
  return bytes;
}

OptimizerStep ParameterBlock::NextUpdate(int i, double rate, double scale) {
  if (const std::shared_ptr<ShardCut> cut = cut_.lock()) {
    for (int32_t e = cut_entry_[i]; e < cut_entry_[i + 1]; ++e) cut->Keep(e);
  }
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

absl::Status ParameterBlock::Allocate(Held& tensor) {
  if (tensor.has_memory) return absl::OkStatus();
  RETURN_IF_ERROR(
      Annotate(tier_->Allocate(tensor.slot, Slot(tensor.state).bytes), tensor.spec.name));
  tensor.has_memory = true;
  return absl::OkStatus();
}

absl::Status ParameterBlock::Touch(int i) {
  Held& tensor = tensors_[i];
  if (tensor.has_memory) {
    Prefetch(i);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(Allocate(tensor));
  GetInitialValues(i, tensor.parameters());
  return absl::OkStatus();
}

void ParameterBlock::GetInitialValues(int i, void* out) const {
  const TensorSpec& spec = tensor(i);
  std::vector<float> values(spec.size());
  FillInitialValues(seed_, spec, values.data());
  if (!spec.bfloat16) {
    backend_.Upload(values.data(), out, values.size() * sizeof(float));
    return;
  }
  std::vector<Bfloat16> halves(spec.size());
  for (size_t e = 0; e < halves.size(); ++e) halves[e] = ToBfloat16(values[e]);
  backend_.Upload(halves.data(), out, halves.size() * sizeof(Bfloat16));
}

void ParameterBlock::Initialize(int i) {
  Held& tensor = tensors_[i];
  tensor.count = 0;
  if (!tensor.has_memory) return;
  GetInitialValues(i, tensor.parameters());
  if (tensor.m != nullptr) backend_.Zero(tensor.m, tensor.state.m * sizeof(float));
  if (tensor.v != nullptr) backend_.Zero(tensor.v, tensor.state.v * sizeof(float));
}

void ParameterBlock::Initialize() {
  for (int i = 0; i < tensors(); ++i) Initialize(i);
}

ParameterBlock::Part ParameterBlock::ParametersOf(int i) const {
  const TensorSpec& spec = tensor(i);
  return {spec.name, {spec.rows, spec.cols}, tensors_[i].parameters(), spec.bfloat16};
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
  // Where what an entry has goes; null: nowhere.
  std::map<std::string, char*> to;
  for (int i = 0; i < tensors(); ++i) {
    Held& tensor = tensors_[i];
    const auto it = file.metadata().find(tensor.spec.name + "#count");
    if (it == file.metadata().end() || !absl::SimpleAtoi(it->second, &tensor.count) ||
        tensor.count < 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(file.path(), ": no update count of ", tensor.spec.name));
    }
    if (IsUntouched(tensor)) {
      Initialize(i);
      // Older files have them all the same.
      for (const Part& part : PartsOf(i)) to[part.name] = nullptr;
      continue;
    }
    RETURN_IF_ERROR(Allocate(tensor));
    for (const Part& part : PartsOf(i)) {
      const absl::StatusOr<SafetensorsEntry> entry =
          FindEntry(file, part.name, part.dtype(), part.shape);
      if (absl::IsNotFound(entry.status())) {
        return absl::FailedPreconditionError(
            absl::StrCat(entry.status().message(),
                         "; is the file of a job with the same model and optimizer?"));
      }
      RETURN_IF_ERROR(entry.status());
      to[part.name] = static_cast<char*>(part.data);
    }
  }
  for (const SafetensorsEntry& entry : file.entries()) {
    if (to.contains(entry.name)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(file.path(), ": has an entry \"", entry.name,
                     "\", for which this job has no use; is the file of a job with the "
                     "same model and optimizer?"));
  }
  return file.ReadAll(
      [&](const SafetensorsEntry& entry, size_t begin, std::string_view bytes) {
        char* const data = to.at(entry.name);
        if (data != nullptr) backend_.Upload(bytes.data(), data + begin, bytes.size());
      });
}

void ParameterBlock::Prefetch(int i) const {
  const Held& tensor = tensors_[i];
  if (tensor.slot == nullptr || !tensor.has_memory) return;
  tier_->Prefetch(tensor.slot, Slot(tensor.state).bytes);
}

std::vector<int> ParameterBlock::Updated() const {
  std::vector<int> updated;
  for (int i = 0; i < tensors(); ++i) {
    if (!IsUntouched(tensors_[i])) updated.push_back(i);
  }
  return updated;
}

std::shared_ptr<ShardCut> ParameterBlock::BeginCut(CopyBudget& copies) {
  std::vector<ShardCut::Entry> entries;
  std::vector<int64_t> counts;
  cut_entry_.clear();
  for (int i = 0; i < tensors(); ++i) {
    cut_entry_.push_back(static_cast<int32_t>(entries.size()));
    counts.push_back(count(i));
    if (IsUntouched(tensors_[i])) continue;
    for (Part& part : PartsOf(i)) {
      ShardCut::Entry& entry = entries.emplace_back();
      if (part.data == tensors_[i].parameters()) entry.parameters = &tensor(i);
      if (tensors_[i].slot != nullptr) entry.tier = tier_;
      entry.name = std::move(part.name);
      entry.dtype = part.dtype();
      entry.bytes = static_cast<int64_t>(part.bytes());
      entry.shape = std::move(part.shape);
      entry.data = part.data;
    }
  }
  cut_entry_.push_back(static_cast<int32_t>(entries.size()));
  const auto metadata = [this, counts = std::move(counts)] {
    std::map<std::string, std::string> texts;
    for (int i = 0; i < tensors(); ++i) {
      texts[tensor(i).name + "#count"] = absl::StrCat(counts[i]);
    }
    return texts;
  };
  auto cut = std::make_shared<ShardCut>(backend_, copies, shard_, std::move(entries),
                                        metadata, Untouched());
  cut_ = cut;
  return cut;
}

std::vector<v1::TensorDigest> ParameterBlock::Digests() const {
  const std::vector<int> updated = Updated();
  size_t prefetched = 0;
  std::vector<v1::TensorDigest> digests;
  for (size_t n = 0; n < updated.size(); ++n) {
    for (; prefetched < std::min(updated.size(), n + 1 + SafetensorsWatch::kAhead);
         ++prefetched) {
      Prefetch(updated[prefetched]);
    }
    std::vector<char> copy;
    const int i = updated[n];
    digests.push_back(DigestOf(i, OnHost(i, ParametersOf(i), &copy)));
  }
  return digests;
}

std::vector<v1::UntouchedTensors> ParameterBlock::Untouched() const {
  std::vector<v1::UntouchedTensors> ranges;
  for (const Held& tensor : tensors_) {
    if (!IsUntouched(tensor)) continue;
    const auto index = static_cast<uint64_t>(tensor.spec.index);
    if (ranges.empty() || ranges.back().first() + ranges.back().count() != index) {
      v1::UntouchedTensors& range = ranges.emplace_back();
      range.set_first(index);
      range.set_seed(seed_);
    }
    ranges.back().set_count(ranges.back().count() + 1);
  }
  return ranges;
}

size_t ParameterBlock::ContentBytes(int i) const {
  if (IsUntouched(tensors_[i])) return 0;
  size_t bytes = 0;
  for (const Part& part : PartsOf(i)) bytes += part.bytes();
  return bytes;
}

std::string ParameterBlock::Content(int i) const {
  std::string content(ContentBytes(i), '\0');
  if (content.empty()) return content;
  char* end = content.data();
  for (const Part& part : PartsOf(i)) {
    backend_.Download(part.data, end, part.bytes());
    end += part.bytes();
  }
  return content;
}

absl::StatusOr<bool> ParameterBlock::SetContent(int i, int64_t count,
                                                std::string_view content) {
  Held& tensor = tensors_[i];
  const int64_t before = std::exchange(tensor.count, count);
  if (content.size() != ContentBytes(i)) {
    tensor.count = before;
    return false;
  }
  if (content.empty()) {
    Initialize(i);
    return true;
  }
  if (absl::Status status = Allocate(tensor); !status.ok()) {
    tensor.count = before;
    return status;
  }
  const char* next = content.data();
  for (const Part& part : PartsOf(i)) {
    backend_.Upload(next, part.data, part.bytes());
    next += part.bytes();
  }
  return true;
}

void ParameterBlock::FillStatus(v1::ShardStatus* status) const {
  int64_t mapped = 0;
  int64_t untouched = 0;
  for (const Held& tensor : tensors_) {
    if (tensor.slot == nullptr) continue;
    (tensor.has_memory ? mapped : untouched) += tensor.bytes();
  }
  status->set_parameter_bytes(w_.size() * sizeof(float) + w16_.size() * sizeof(Bfloat16));
  status->set_optimizer_bytes((m_.size() + v_.size()) * sizeof(float));
  status->set_mapped_bytes(mapped);
  status->set_untouched_bytes(untouched);
}

std::span<const char> ParameterBlock::OnHost(int i, const Part& part,
                                             std::vector<char>* copy) const {
  if (tensors_[i].slot != nullptr) {
    return {static_cast<const char*>(part.data), part.bytes()};
  }
  copy->resize(part.bytes());
  backend_.Download(part.data, copy->data(), copy->size());
  return *copy;
}

v1::TensorDigest ParameterBlock::DigestOf(int i, std::span<const char> parameters) const {
  Sha256 sha;
  sha.Update(parameters.data(), parameters.size());
  return MakeTensorDigest(tensor(i), sha);
}

}  // namespace moe
