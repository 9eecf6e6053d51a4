#include "worker/data/sentence_source.h"

#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/base/string_view.h"
#include "worker/data/verse_filter.h"

namespace moe {
namespace {

int64_t BytesOf(const std::string& path) {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  return error ? 0 : static_cast<int64_t>(size);
}

}  // namespace

absl::StatusOr<SentenceSource> SentenceSource::Open(const PrepareOptions& options,
                                                    PreparationProgress& progress) {
  SentenceSource source(options, progress);
  if (!options.text.empty()) RETURN_IF_ERROR(source.Add(options.text, std::nullopt));
  for (TextSplit split : kTextSplits) {
    for (const std::string& path : options.paths(split))
      RETURN_IF_ERROR(source.Add(path, split));
  }
  RETURN_IF_ERROR(source.CheckThatTheyDiffer());
  return source;
}

int64_t SentenceSource::TotalBytes(const PrepareOptions& options) {
  int64_t bytes = options.text.empty() ? 0 : BytesOf(options.text);
  for (TextSplit split : kTextSplits) {
    for (const std::string& path : options.paths(split)) bytes += BytesOf(path);
  }
  return bytes;
}

std::vector<std::string> SentenceSource::checksums() const {
  std::vector<std::string> checksums;
  for (const Input& input : inputs_) checksums.push_back(input.file.sha256());
  return checksums;
}

absl::Status SentenceSource::ForEachSentence(
    const std::function<absl::Status(const Sentence&)>& fn) {
  if (!options_.text.empty() && !splitter_.has_value()) RETURN_IF_ERROR(MakeSplitter());
  for (const Input& input : inputs_) {
    int64_t number = 0;
    RETURN_IF_ERROR(
        ForEachText(input.file, kReadWork, [&](std::string_view text, int64_t line) {
          const TextSplit split =
              input.split.has_value() ? *input.split : splitter_->SplitOf(number);
          ++number;
          const std::span<const std::string_view> tokens = tokenizer_.Tokenize(text);
          if (tokens.empty()) return absl::OkStatus();
          return fn({split, tokens, input.file.path(), line});
        }));
  }
  return absl::OkStatus();
}

absl::Status SentenceSource::Add(const std::string& path,
                                 std::optional<TextSplit> split) {
  const auto advance = [this](int64_t bytes) { progress_.Advance(kOpenWork * bytes); };
  ASSIGN_OR_RETURN(TextFile file, TextFile::Open(path, advance));
  inputs_.push_back({std::move(file), split});
  return absl::OkStatus();
}

absl::Status SentenceSource::CheckThatTheyDiffer() const {
  std::map<std::string, std::string> paths;  // by checksum
  for (const Input& input : inputs_) {
    const auto [there, is_new] = paths.emplace(input.file.sha256(), input.file.path());
    if (is_new) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(there->second, " and ", input.file.path(),
                     " are the same text; give each text once, for one split"));
  }
  return absl::OkStatus();
}

absl::Status SentenceSource::MakeSplitter() {
  int64_t sentences = 0;
  RETURN_IF_ERROR(ForEachText(inputs_[0].file, 0, [&](std::string_view, int64_t) {
    ++sentences;
    return absl::OkStatus();
  }));
  splitter_.emplace(sentences, options_.validation_fraction, options_.test_fraction);
  return absl::OkStatus();
}

absl::Status SentenceSource::ForEachText(const TextFile& file, int64_t work,
                                         const TextFunction& fn) {
  const bool verses = options_.strip_verse_references;
  absl::Status status;
  int64_t current = 0;
  VerseFilter filter([&](std::string_view verse) {
    if (status.ok()) status = fn(verse, current);
  });
  RETURN_IF_ERROR(file.ForEachLine([&](std::string_view line, int64_t number) {
    progress_.Advance(work * (static_cast<int64_t>(line.size()) + 1));
    current = number;
    if (verses) {
      filter.Line(line);
      return status;
    }
    if (absl::StripAsciiWhitespace(ToAbsl(line)).empty()) return absl::OkStatus();
    return fn(line, number);
  }));
  if (verses) filter.Finish();
  return status;
}

}  // namespace moe
