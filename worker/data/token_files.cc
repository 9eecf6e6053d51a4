#include "worker/data/token_files.h"

#include <algorithm>
#include <filesystem>

#include "common/base/status_macros.h"
#include "worker/data/vocabulary.h"

namespace moe {
namespace {

constexpr size_t kBufferTokens = size_t{1} << 18;

// With writers for the first splits: opens the others' files, one inside the other, so
// that none gets its name before fill has succeeded.
absl::Status WriteOthers(
    const std::string& folder,
    const std::function<absl::Status(std::span<TokenFileWriter>)>& fill,
    std::vector<TokenFileWriter>& writers, DatasetMeta& meta) {
  if (writers.size() == kTextSplits.size()) return fill(writers);
  const TextSplit split = kTextSplits[writers.size()];
  const std::string path =
      (std::filesystem::path(folder) / TokenFileName(split)).string();
  return WriteFileAtomically(path, [&](FileSink& file) -> absl::Status {
    const size_t index = writers.size();
    writers.emplace_back(file);
    RETURN_IF_ERROR(WriteOthers(folder, fill, writers, meta));
    ASSIGN_OR_RETURN(meta.split(split), writers[index].Finish());
    return absl::OkStatus();
  });
}

}  // namespace

absl::Status TokenFileWriter::AppendSentence(std::span<const int32_t> ids) {
  buffer_.insert(buffer_.end(), ids.begin(), ids.end());
  buffer_.push_back(Vocabulary::kEndOfSentence);
  ++written_.lines;
  written_.tokens += static_cast<int64_t>(ids.size()) + 1;
  written_.unknown += std::count(ids.begin(), ids.end(), Vocabulary::kUnknown);
  return buffer_.size() < kBufferTokens ? absl::OkStatus() : Flush();
}

absl::StatusOr<DatasetMeta::File> TokenFileWriter::Finish() {
  RETURN_IF_ERROR(Flush());
  written_.sha256 = sha256_.Hex();
  return written_;
}

absl::Status TokenFileWriter::Flush() {
  const std::string_view bytes(reinterpret_cast<const char*>(buffer_.data()),
                               buffer_.size() * sizeof(int32_t));
  sha256_.Update(bytes);
  RETURN_IF_ERROR(file_.Append(bytes));
  buffer_.clear();
  return absl::OkStatus();
}

absl::Status WriteTokenFiles(
    const std::string& folder,
    const std::function<absl::Status(std::span<TokenFileWriter>)>& fill,
    DatasetMeta& meta) {
  std::vector<TokenFileWriter> writers;
  writers.reserve(kTextSplits.size());
  return WriteOthers(folder, fill, writers, meta);
}

}  // namespace moe
