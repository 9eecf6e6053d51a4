// The texts that prepare_text reads, as tokenised sentences.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/data/block_splitter.h"
#include "worker/data/dataset_meta.h"
#include "worker/data/preparation_progress.h"
#include "worker/data/prepare_options.h"
#include "worker/data/text_file.h"
#include "worker/data/tokenizer.h"

namespace moe {

struct Sentence {
  TextSplit split;
  std::span<const std::string_view> tokens;  // at least one
  // Where it stands, for errors: the line, or the last one that has been read for it.
  const std::string& path;
  int64_t line;
};

class SentenceSource {
 public:
  // Work for a byte of text, as the progress is told: Open, and each ForEachSentence.
  static constexpr int64_t kOpenWork = 1;
  static constexpr int64_t kReadWork = 6;

  // Opens all files. INVALID_ARGUMENT if two of them are equal; else TextFile::Open's
  // errors. options and progress must outlive the object.
  static absl::StatusOr<SentenceSource> Open(const PrepareOptions& options,
                                             PreparationProgress& progress);
  // Bytes of all files; 0 for those that aren't there, which Open will say.
  static int64_t TotalBytes(const PrepareOptions& options);

  // Of the files, in their order.
  std::vector<std::string> checksums() const;

  // Reads everything, until fn's first error.
  absl::Status ForEachSentence(const std::function<absl::Status(const Sentence&)>& fn);

 private:
  struct Input {
    TextFile file;
    std::optional<TextSplit> split;  // not set: its sentences are split
  };
  using TextFunction = std::function<absl::Status(std::string_view text, int64_t line)>;

  SentenceSource(const PrepareOptions& options, PreparationProgress& progress)
      : options_(options), progress_(progress), tokenizer_(options.tokenizer) {}

  absl::Status Add(const std::string& path, std::optional<TextSplit> split);
  absl::Status CheckThatTheyDiffer() const;
  absl::Status MakeSplitter();
  // A sentence's text, and the number of its line.
  absl::Status ForEachText(const TextFile& file, int64_t work, const TextFunction& fn);

  const PrepareOptions& options_;
  PreparationProgress& progress_;
  Tokenizer tokenizer_;
  std::vector<Input> inputs_;
  std::optional<BlockSplitter> splitter_;  // of the only input, made when it is needed
};

}  // namespace moe
