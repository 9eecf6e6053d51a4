#include "worker/data/token_dataset.h"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "common/io/file.h"
#include "common/io/input_file.h"
#include "common/io/sha256.h"

static_assert(std::endian::native == std::endian::little);

namespace moe {
namespace {

constexpr size_t kBlockTokens = size_t{1} << 18;

std::span<const int32_t> AsTokens(const MappedFile& file) {
  return {reinterpret_cast<const int32_t*>(file.bytes().data()),
          file.bytes().size() / sizeof(int32_t)};
}

// Fills bytes as far as the file goes; how far.
absl::StatusOr<size_t> ReadBlock(const InputFile& file, std::span<char> bytes) {
  size_t size = 0;
  while (size < bytes.size()) {
    ASSIGN_OR_RETURN(const size_t got,
                     file.Read(bytes.data() + size, bytes.size() - size));
    if (got == 0) break;
    size += got;
  }
  return size;
}

// Reads the file, block by block and once: a large one needs no memory, and when it is
// mapped later, only the pages that are used count as the process's.
absl::Status CheckTokenFile(const std::string& path, const DatasetMeta::File& expected,
                            int64_t vocabulary) {
  const auto damaged = [&](const auto&... what) {
    return absl::DataLossError(
        absl::StrCat(path, " is damaged: ", what..., "; prepare the text again"));
  };
  ASSIGN_OR_RETURN(const InputFile file, InputFile::OpenRegular(path));
  std::vector<int32_t> block(kBlockTokens);
  const std::span<char> bytes(reinterpret_cast<char*>(block.data()),
                              block.size() * sizeof(int32_t));
  Sha256 sha256;
  size_t size = 0;
  while (true) {
    ASSIGN_OR_RETURN(const size_t got, ReadBlock(file, bytes));
    if (got == 0) break;
    const auto end = block.begin() + static_cast<int64_t>(got / sizeof(int32_t));
    const auto bad = std::find_if(block.begin(), end, [vocabulary](int32_t id) {
      return id < 0 || id >= vocabulary;
    });
    if (bad != end) {
      return damaged("token ",
                     static_cast<int64_t>(size / sizeof(int32_t)) + (bad - block.begin()),
                     " has the id ", *bad, ", which isn't in the vocabulary of ",
                     FormatCount(vocabulary), " words");
    }
    sha256.Update(bytes.data(), got);
    size += got;
  }
  const int64_t needed = expected.tokens * static_cast<int64_t>(sizeof(int32_t));
  if (static_cast<int64_t>(size) != needed) {
    return damaged("it has ", size, " bytes, but ", FormatCount(expected.tokens),
                   " tokens need ", needed);
  }
  if (sha256.Hex() != expected.sha256) {
    return damaged("its checksum isn't the one in ", kMetaFile);
  }
  return absl::OkStatus();
}

std::string PathOf(const std::string& folder, const std::string& name) {
  return (std::filesystem::path(folder) / name).string();
}

absl::StatusOr<Vocabulary> ReadWords(const std::string& folder,
                                     const std::string& sha256) {
  const std::string path = PathOf(folder, kVocabularyFile);
  ASSIGN_OR_RETURN(const std::string words, ReadFile(path));
  if (Sha256Hex(words) != sha256) {
    return absl::DataLossError(absl::StrCat(path, " is damaged: its checksum isn't the ",
                                            "one in ", kMetaFile,
                                            "; prepare the text again"));
  }
  return Vocabulary::Parse(words, path);
}

}  // namespace

absl::StatusOr<TokenDataset> TokenDataset::Open(const std::string& folder) {
  const std::string meta_path = PathOf(folder, kMetaFile);
  absl::StatusOr<std::string> meta_text = ReadFile(meta_path);
  if (absl::IsNotFound(meta_text.status())) {
    return absl::NotFoundError(absl::StrCat(folder,
                                            " holds no prepared text (there is no ",
                                            meta_path, "); make one with prepare_text"));
  }
  RETURN_IF_ERROR(meta_text.status());
  ASSIGN_OR_RETURN(const DatasetMeta meta, ParseDatasetMeta(*meta_text, meta_path));

  int64_t vocabulary_size = 0;
  {
    ASSIGN_OR_RETURN(const Vocabulary vocabulary,
                     ReadWords(folder, meta.vocabulary_sha256));
    vocabulary_size = vocabulary.size();
  }

  std::array<std::unique_ptr<MappedFile>, 3> files;
  for (TextSplit split : kTextSplits) {
    const std::string path = PathOf(folder, TokenFileName(split));
    auto& file = files[static_cast<size_t>(split)];
    RETURN_IF_ERROR(CheckTokenFile(path, meta.split(split), vocabulary_size));
    ASSIGN_OR_RETURN(file, MappedFile::Open(path));
    if (static_cast<int64_t>(AsTokens(*file).size()) != meta.split(split).tokens) {
      return absl::AbortedError(absl::StrCat(
          path, " has changed while it was read; is its text being prepared?"));
    }
  }
  return TokenDataset(folder, meta, vocabulary_size, std::move(files));
}

TokenDataset::TokenDataset(std::string folder, const DatasetMeta& meta,
                           int64_t vocabulary_size,
                           std::array<std::unique_ptr<MappedFile>, 3> files)
    : folder_(std::move(folder)),
      vocabulary_sha256_(meta.vocabulary_sha256),
      vocabulary_size_(vocabulary_size),
      sha256_(DatasetSha256(meta)),
      files_(std::move(files)) {}

absl::StatusOr<Vocabulary> TokenDataset::ReadVocabulary() const {
  return ReadWords(folder_, vocabulary_sha256_);
}

std::span<const int32_t> TokenDataset::tokens(TextSplit split) const {
  return AsTokens(*files_[static_cast<size_t>(split)]);
}

}  // namespace moe
