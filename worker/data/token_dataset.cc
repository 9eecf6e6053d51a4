#include "worker/data/token_dataset.h"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "common/io/file.h"
#include "common/io/sha256.h"

static_assert(std::endian::native == std::endian::little);

namespace moe {
namespace {

std::span<const int32_t> AsTokens(const MappedFile& file) {
  return {reinterpret_cast<const int32_t*>(file.bytes().data()),
          file.bytes().size() / sizeof(int32_t)};
}

absl::Status CheckTokenFile(const MappedFile& file, const std::string& path,
                            const DatasetMeta::File& expected, int64_t vocabulary) {
  const auto damaged = [&](const auto&... what) {
    return absl::DataLossError(
        absl::StrCat(path, " is damaged: ", what..., "; prepare the text again"));
  };
  const uint64_t bytes = file.bytes().size();
  if (bytes != static_cast<uint64_t>(expected.tokens) * sizeof(int32_t)) {
    return damaged("it has ", bytes, " bytes, but ", FormatCount(expected.tokens),
                   " tokens need ",
                   expected.tokens * static_cast<int64_t>(sizeof(int32_t)));
  }
  const std::span<const int32_t> tokens = AsTokens(file);
  const auto bad = std::find_if(tokens.begin(), tokens.end(), [vocabulary](int32_t id) {
    return id < 0 || id >= vocabulary;
  });
  if (bad != tokens.end()) {
    return damaged("token ", bad - tokens.begin(), " has the id ", *bad,
                   ", which isn't in the vocabulary of ", FormatCount(vocabulary),
                   " words");
  }
  if (Sha256Hex(file.bytes()) != expected.sha256) {
    return damaged("its checksum isn't the one in ", kMetaFile);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenDataset> TokenDataset::Open(const std::string& folder) {
  const auto path_of = [&](const std::string& name) {
    return (std::filesystem::path(folder) / name).string();
  };
  const std::string meta_path = path_of(kMetaFile);
  absl::StatusOr<std::string> meta_text = ReadFile(meta_path);
  if (absl::IsNotFound(meta_text.status())) {
    return absl::NotFoundError(absl::StrCat(folder,
                                            " holds no prepared text (there is no ",
                                            meta_path, "); make one with prepare_text"));
  }
  RETURN_IF_ERROR(meta_text.status());
  ASSIGN_OR_RETURN(const DatasetMeta meta, ParseDatasetMeta(*meta_text, meta_path));

  const std::string vocabulary_path = path_of(kVocabularyFile);
  ASSIGN_OR_RETURN(const std::string words, ReadFile(vocabulary_path));
  if (Sha256Hex(words) != meta.vocabulary_sha256) {
    return absl::DataLossError(
        absl::StrCat(vocabulary_path, " is damaged: its checksum isn't the ", "one in ",
                     kMetaFile, "; prepare the text again"));
  }
  ASSIGN_OR_RETURN(Vocabulary vocabulary, Vocabulary::Parse(words, vocabulary_path));

  std::array<std::unique_ptr<MappedFile>, 3> files;
  for (TextSplit split : kTextSplits) {
    const std::string path = path_of(TokenFileName(split));
    auto& file = files[static_cast<size_t>(split)];
    ASSIGN_OR_RETURN(file, MappedFile::Open(path));
    RETURN_IF_ERROR(CheckTokenFile(*file, path, meta.split(split), vocabulary.size()));
  }
  return TokenDataset(std::move(vocabulary), DatasetSha256(meta), std::move(files));
}

TokenDataset::TokenDataset(Vocabulary vocabulary, std::string sha256,
                           std::array<std::unique_ptr<MappedFile>, 3> files)
    : vocabulary_(std::move(vocabulary)),
      sha256_(std::move(sha256)),
      files_(std::move(files)) {}

std::span<const int32_t> TokenDataset::tokens(TextSplit split) const {
  return AsTokens(*files_[static_cast<size_t>(split)]);
}

}  // namespace moe
