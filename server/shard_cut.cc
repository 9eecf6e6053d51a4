#include "server/shard_cut.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/base/status_macros.h"
#include "common/io/file.h"
#include "common/io/safetensors.h"
#include "common/io/sha256.h"

namespace moe {

ShardCut::ShardCut(Backend& backend, CopyBudget& copies, std::string shard,
                   std::vector<Entry> entries, Metadata metadata,
                   std::vector<v1::UntouchedTensors> untouched)
    : backend_(backend),
      copies_(copies),
      shard_(std::move(shard)),
      entries_(std::move(entries)),
      metadata_(std::move(metadata)),
      untouched_(std::move(untouched)),
      progress_(entries_.size()) {}

ShardCut::~ShardCut() {
  absl::MutexLock lock(&mutex_);
  int64_t freed = 0;
  for (size_t e = 0; e < entries_.size(); ++e) {
    for (const auto& [unit, copy] : progress_[e].copies)
      freed += UnitBytes(entries_[e], unit);
  }
  copies_.Return(freed);
}

int64_t ShardCut::UnitBytes(const Entry& entry, int64_t unit) const {
  return std::min(entry.unit, entry.bytes - unit * entry.unit);
}

void ShardCut::Download(const Entry& entry, int64_t begin, int64_t end, char* to) const {
  if (begin == end) return;
  const char* from = static_cast<const char*>(entry.data) + begin;
  if (entry.on_host) {
    std::memcpy(to, from, end - begin);
  } else {
    backend_.Download(from, to, end - begin);
  }
}

void ShardCut::Keep(size_t entry, int64_t begin, int64_t end) {
  const int64_t unit = entries_[entry].unit;
  for (int64_t u = begin / unit; u * unit < end; ++u) {
    while (true) {
      const uint64_t seen = copies_.progress();
      if (KeepUnit(entry, u)) break;
      if (copies_.Await(seen)) continue;
      absl::MutexLock lock(&mutex_);
      over_ = true;
      return;
    }
  }
}

bool ShardCut::KeepUnit(size_t e, int64_t unit) {
  const Entry& entry = entries_[e];
  const int64_t bytes = UnitBytes(entry, unit);
  absl::MutexLock lock(&mutex_);
  Progress& progress = progress_[e];
  const int64_t begin = unit * entry.unit;
  if (begin < progress.read || progress.copies.contains(unit)) return true;
  if (!copies_.Take(bytes)) return false;
  auto copy = std::make_unique_for_overwrite<char[]>(bytes);
  Download(entry, begin, begin + bytes, copy.get());
  progress.copies[unit] = std::move(copy);
  return true;
}

absl::StatusOr<int64_t> ShardCut::ReadNext(size_t e, std::vector<char>* bytes) {
  const Entry& entry = entries_[e];
  // Whole units.
  const int64_t most = std::max(kCutChunk / entry.unit, int64_t{1}) * entry.unit;
  int64_t freed = 0;
  absl::MutexLock lock(&mutex_);
  if (over_) return absl::CancelledError("the cut is over");
  Progress& progress = progress_[e];
  int64_t at = progress.read;
  const int64_t end = std::min(at + most, entry.bytes);
  bytes->resize(end - at);
  char* to = bytes->data();
  const auto download = [&](int64_t until) {
    Download(entry, at, until, to);
    to += until - at;
    at = until;
  };
  auto& copies = progress.copies;
  auto next = copies.begin();
  for (; next != copies.end() && next->first * entry.unit < end; ++next) {
    const int64_t size = UnitBytes(entry, next->first);
    download(next->first * entry.unit);
    std::memcpy(to, next->second.get(), size);
    to += size;
    at += size;
    freed += size;
  }
  download(end);
  copies.erase(copies.begin(), next);
  progress.read = end;
  return freed;
}

absl::Status ShardCut::Read(size_t entry,
                            const std::function<absl::Status(std::string_view)>& take) {
  std::vector<char> bytes;
  for (int64_t left = entries_[entry].bytes; left > 0;
       left -= static_cast<int64_t>(bytes.size())) {
    ASSIGN_OR_RETURN(const int64_t freed, ReadNext(entry, &bytes));
    copies_.Return(freed);
    RETURN_IF_ERROR(take({bytes.data(), bytes.size()}));
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::ShardFile> ShardCut::Write(
    const Cut& cut, const std::function<absl::Status()>& go_on) {
  std::vector<SafetensorsEntry> entries;
  for (const Entry& entry : entries_) {
    entries.push_back({entry.name, entry.dtype, entry.shape, /*data=*/nullptr,
                       static_cast<size_t>(entry.bytes)});
  }
  std::map<size_t, v1::TensorDigest> digests;  // by entry
  SafetensorsWatch watch;
  // What is in the tier is read once, a little ahead: it may be more than memory holds.
  watch.soon = [&](size_t e) {
    const Entry& entry = entries_[e];
    if (entry.tier == nullptr) return;
    entry.tier->Prefetch(static_cast<const char*>(entry.data), entry.bytes);
  };
  watch.contents = [&](size_t e, FileSink& sink) -> absl::Status {
    const TensorSpec* const parameters = entries_[e].parameters;
    Sha256 sha;
    RETURN_IF_ERROR(Read(e, [&](std::string_view bytes) -> absl::Status {
      RETURN_IF_ERROR(go_on());
      if (parameters != nullptr) sha.Update(bytes);
      return sink.Append(bytes);
    }));
    if (parameters != nullptr) digests[e] = MakeTensorDigest(*parameters, sha);
    return absl::OkStatus();
  };
  ASSIGN_OR_RETURN(
      v1::ShardFile file,
      WriteShardFile(cut, shard_, entries,
                     metadata_ ? metadata_() : std::map<std::string, std::string>(),
                     watch));
  for (auto& [e, digest] : digests) *file.add_tensors() = std::move(digest);
  for (const v1::UntouchedTensors& range : untouched_) *file.add_untouched() = range;
  return file;
}

}  // namespace moe
