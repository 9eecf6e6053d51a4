#include "common/kernels/cuda/expert_cache.h"

namespace moe::cuda {
namespace {

constexpr size_t kSegmentBytes = size_t{8} << 20;

}  // namespace

ExpertCache::ExpertCache(cudaStream_t compute, int64_t budget_bytes)
    : compute_(compute), budget_(budget_bytes) {
  CheckOk(cudaStreamCreateWithFlags(&copy_, cudaStreamNonBlocking));
  CheckOk(cudaEventCreateWithFlags(&copied_, cudaEventDisableTiming));
  for (cudaEvent_t& event : done_) {
    CheckOk(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  }
}

ExpertCache::~ExpertCache() {
  CheckOk(cudaStreamSynchronize(compute_));
  for (auto it = copies_.begin(); it != copies_.end();) it = Drop(it);
  uploads_.reset();
  CheckOk(cudaStreamSynchronize(copy_));
  CheckOk(cudaEventDestroy(copied_));
  for (cudaEvent_t event : done_) CheckOk(cudaEventDestroy(event));
  CheckOk(cudaStreamDestroy(copy_));
}

void ExpertCache::Begin() { ++round_; }

ExpertCache::Copies::iterator ExpertCache::Drop(Copies::iterator it) {
  const auto& [host, copy] = *it;
  const auto [begin, end] = by_round_.equal_range(copy.round);
  for (auto place = begin; place != end; ++place) {
    if (place->second != host) continue;
    by_round_.erase(place);
    break;
  }
  // The kernels of the copy's last round have to be over. The last two rounds have events of their own;
  // whatever is older is over when the older of them is.
  const int64_t round = copy.round >= round_ - 1 ? copy.round : round_ - 2;
  CheckOk(cudaStreamWaitEvent(copy_, done_[round & 1], 0));
  CheckOk(cudaFreeAsync(copy.device, copy_));
  bytes_ -= static_cast<int64_t>(copy.bytes);
  return copies_.erase(it);
}

void ExpertCache::MakeRoom(size_t bytes) {
  while (bytes_ + static_cast<int64_t>(bytes) > budget_ && !by_round_.empty()) {
    const auto [round, host] = *by_round_.begin();
    if (round == round_) return;
    Drop(copies_.find(host));
  }
}

void* ExpertCache::Get(const void* host, size_t bytes, bool keep) {
  const char* const key = static_cast<const char*>(host);
  auto it = copies_.find(key);
  if (it != copies_.end() && it->second.bytes != bytes) {
    Drop(it);
    it = copies_.end();
  }
  if (it != copies_.end()) {
    ++hits_;
    const auto [begin, end] = by_round_.equal_range(it->second.round);
    for (auto place = begin; place != end; ++place) {
      if (place->second != key) continue;
      by_round_.erase(place);
      break;
    }
    it->second.round = round_;
    by_round_.emplace(round_, key);
    return it->second.device;
  }
  MakeRoom(bytes);
  if (uploads_ == nullptr) {
    uploads_ = std::make_unique<UploadRing>(copy_, kSegmentBytes);
  }
  char* const device = static_cast<char*>(AllocateOnStream(bytes, copy_));
  uploads_->Upload(host, device, bytes);
  copies_[key] = {device, bytes, round_, keep};
  by_round_.emplace(round_, key);
  bytes_ += static_cast<int64_t>(bytes);
  return device;
}

void ExpertCache::Ready() {
  CheckOk(cudaEventRecord(copied_, copy_));
  CheckOk(cudaStreamWaitEvent(compute_, copied_, 0));
}

void ExpertCache::End() {
  CheckOk(cudaEventRecord(done_[round_ & 1], compute_));
  const auto [begin, end] = by_round_.equal_range(round_);
  std::multimap<int64_t, const char*> now(begin, end);
  for (const auto& [round, host] : now) {
    const auto it = copies_.find(host);
    if (!it->second.keep) Drop(it);
  }
}

void ExpertCache::Forget(const void* host, size_t bytes) {
  if (copies_.empty() || bytes == 0) return;
  const char* const begin = static_cast<const char*>(host);
  auto it = copies_.upper_bound(begin);
  if (it != copies_.begin()) {
    const auto before = std::prev(it);
    if (before->first + before->second.bytes > begin) it = before;
  }
  while (it != copies_.end() && it->first < begin + bytes) it = Drop(it);
}

}  // namespace moe::cuda
