// A prepared text: the token ids of its three splits, and its vocabulary, whose words stay on disk.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "common/io/mapped_file.h"
#include "worker/data/dataset_meta.h"
#include "worker/data/vocabulary.h"

namespace moe {

// Immutable, hence usable from any thread.
class TokenDataset {
 public:
  // Reads a folder that prepare_text made, and checks every size, checksum and id.
  static absl::StatusOr<TokenDataset> Open(const std::string& folder);

  // Valid as long as this object; may be empty.
  std::span<const int32_t> tokens(TextSplit split) const;
  int64_t vocabulary_size() const { return vocabulary_size_; }
  // Reads the words, which must still be those that Open found.
  absl::StatusOr<Vocabulary> ReadVocabulary() const;
  // Equal for equal data, wherever it lies.
  const std::string& sha256() const { return sha256_; }

 private:
  TokenDataset(std::string folder, const DatasetMeta& meta, int64_t vocabulary_size,
               std::array<std::unique_ptr<MappedFile>, 3> files);

  std::string folder_;
  std::string vocabulary_sha256_;
  int64_t vocabulary_size_ = 0;
  std::string sha256_;
  std::array<std::unique_ptr<MappedFile>, 3> files_;  // by TextSplit
};

}  // namespace moe
