// The token files of a prepared data folder (dataset_meta.h), as they are written.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/io/file.h"
#include "common/io/sha256.h"
#include "worker/data/dataset_meta.h"

namespace moe {

// Appends sentences to one file, of which it holds a megabyte at most in memory.
class TokenFileWriter {
 public:
  // file must outlive the object.
  explicit TokenFileWriter(FileSink& file) : file_(file) {}

  // ids: the sentence's words; <eos> is appended.
  absl::Status AppendSentence(std::span<const int32_t> ids);
  // After the last sentence.
  absl::StatusOr<DatasetMeta::File> Finish();

 private:
  absl::Status Flush();

  FileSink& file_;
  std::vector<int32_t> buffer_;
  Sha256 sha256_;
  DatasetMeta::File written_;
};

// Writes the files of all splits at once: fill appends to the writers, by TextSplit. After
// OK they are on disk whole and meta.splits describes them; after an error each is as it
// was before or new.
absl::Status WriteTokenFiles(
    const std::string& folder,
    const std::function<absl::Status(std::span<TokenFileWriter>)>& fill,
    DatasetMeta& meta);

}  // namespace moe
