#include "worker/data/prepare_text.h"

#include <array>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "common/base/string_view.h"
#include "common/io/file.h"
#include "common/io/sha256.h"
#include "nlohmann/json.hpp"
#include "worker/data/preparation_progress.h"
#include "worker/data/sentence_source.h"
#include "worker/data/token_dataset.h"
#include "worker/data/token_files.h"
#include "worker/data/vocabulary.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

// A vocabulary that lacks so many of the training text's words is hardly that text's.
constexpr double kSuspectUnknown = 0.1;

struct GivenVocabulary {
  Vocabulary words;
  std::string sha256;
};

absl::StatusOr<std::optional<GivenVocabulary>> ReadGivenVocabulary(
    const std::string& path) {
  if (path.empty()) return std::nullopt;
  ASSIGN_OR_RETURN(const std::string contents, ReadFile(path));
  ASSIGN_OR_RETURN(Vocabulary words, Vocabulary::ParseForeign(contents, path));
  return GivenVocabulary{std::move(words), Sha256Hex(contents)};
}

// Whatever the output depends on, and nothing else.
std::string MadeFrom(const PrepareOptions& options, const SentenceSource& source,
                     const std::optional<GivenVocabulary>& given) {
  nlohmann::ordered_json json;
  json["program"] = "prepare_text 1";
  const std::vector<std::string> checksums = source.checksums();
  json["texts_sha256"] = checksums;
  if (checksums.size() > kTextSplits.size()) {
    for (TextSplit split : kTextSplits)
      json["texts_of_splits"].push_back(options.paths(split).size());
  }
  json["lowercase"] = options.tokenizer.lowercase;
  json["tokenized"] = options.tokenizer.tokenized;
  json["strip_verse_references"] = options.strip_verse_references;
  if (given.has_value()) {
    json["vocabulary_file_sha256"] = given->sha256;
  } else {
    json["vocabulary_size"] = options.vocabulary_size;
    json["min_count"] = options.min_count;
  }
  if (!options.text.empty()) {
    json["validation_fraction"] = options.validation_fraction;
    json["test_fraction"] = options.test_fraction;
  }
  return json.dump();
}

class Preparation {
 public:
  Preparation(const PrepareOptions& options, SentenceSource& source,
              const std::optional<GivenVocabulary>& given, PreparationProgress& progress)
      : options_(options), source_(source), given_(given), progress_(progress) {}

  absl::StatusOr<DatasetMeta> Run() {
    ASSIGN_OR_RETURN(const Vocabulary vocabulary,
                     given_.has_value() ? CountGivenWords() : CountAllWords());
    return Write(vocabulary);
  }

 private:
  absl::StatusOr<Vocabulary> CountAllWords() {
    absl::flat_hash_map<std::string, int64_t> counts;
    RETURN_IF_ERROR(source_.ForEachSentence([&](const Sentence& sentence) {
      ++sentences_[static_cast<size_t>(sentence.split)];
      const bool training = sentence.split == TextSplit::kTrain;
      for (const std::string_view token : sentence.tokens) {
        const auto there = counts.find(ToAbsl(token));
        if (there != counts.end()) {
          if (training) ++there->second;
          continue;
        }
        RETURN_IF_ERROR(CheckIsNoEnd(sentence, token));
        if (training) counts.emplace(std::string(token), 1);
      }
      return absl::OkStatus();
    }));
    RETURN_IF_ERROR(CheckSplits());
    Vocabulary vocabulary =
        Vocabulary::Build(counts, options_.vocabulary_size, options_.min_count);
    if (vocabulary.size() < 3) {
      return absl::InvalidArgumentError(absl::StrCat(
          "no word of the training text occurs --min_count=", options_.min_count,
          " times"));
    }
    return vocabulary;
  }

  absl::StatusOr<Vocabulary> CountGivenWords() {
    const Vocabulary& words = given_->words;
    std::vector<int64_t> counts(words.size(), 0);
    int64_t tokens = 0;  // of the training split
    RETURN_IF_ERROR(source_.ForEachSentence([&](const Sentence& sentence) {
      ++sentences_[static_cast<size_t>(sentence.split)];
      const bool training = sentence.split == TextSplit::kTrain;
      if (training) tokens += static_cast<int64_t>(sentence.tokens.size());
      for (const std::string_view token : sentence.tokens) {
        const int32_t id = words.Find(token);
        if (id <= Vocabulary::kEndOfSentence) {
          RETURN_IF_ERROR(CheckIsNoEnd(sentence, token));
        }
        if (training) ++counts[id];
      }
      return absl::OkStatus();
    }));
    RETURN_IF_ERROR(CheckSplits());
    const int64_t unknown = counts[Vocabulary::kUnknown];
    if (unknown == tokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("the training text has no word of ", options_.vocabulary_file));
    }
    const double share = static_cast<double>(unknown) / static_cast<double>(tokens);
    if (share > kSuspectUnknown) {
      progress_.Warn(absl::StrFormat(
          "%.0f %% of the training text isn't in %s; are its words told apart and "
          "capitals kept as the vocabulary has them?",
          100 * share, options_.vocabulary_file));
    }
    return words.SortedBy(counts);
  }

  static absl::Status CheckIsNoEnd(const Sentence& sentence, std::string_view token) {
    if (!Vocabulary::IsSentenceEndName(token)) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        sentence.path, " line ", sentence.line, " has the word ", ToAbsl(token),
        "; the end of a line is the sentence's end, so remove the word"));
  }

  // That every split that should have text has some.
  absl::Status CheckSplits() const {
    int64_t all = 0;
    for (const int64_t sentences : sentences_) all += sentences;
    for (TextSplit split : kTextSplits) {
      if (sentences_[static_cast<size_t>(split)] > 0) continue;
      if (options_.text.empty()) return NoText(options_.paths(split)[0]);
      if (all == 0) return NoText(options_.text);
      if (split == TextSplit::kValidation && options_.validation_fraction == 0) continue;
      if (split == TextSplit::kTest && options_.test_fraction == 0) continue;
      const std::string name = TextSplitName(split);
      return absl::InvalidArgumentError(absl::StrCat(
          options_.text, " is too short: of its ", FormatCount(all),
          " lines none falls to the ", name, " split; give a longer text, or other --",
          split == TextSplit::kTrain ? "validation_fraction and --test" : name,
          "_fraction"));
    }
    return absl::OkStatus();
  }

  absl::Status NoText(const std::string& path) const {
    return absl::InvalidArgumentError(
        absl::StrCat(path, options_.strip_verse_references
                               ? " has no verses (lines such as \"Genesis 1:1: In ...\")"
                               : " has no text"));
  }

  absl::StatusOr<DatasetMeta> Write(const Vocabulary& vocabulary) {
    const fs::path folder(options_.out);
    RETURN_IF_ERROR(MakeDirs(options_.out));
    // From here on the folder is incomplete until the new one is written.
    RETURN_IF_ERROR(RemoveTree((folder / kMetaFile).string()));
    RETURN_IF_ERROR(RemoveLeftovers(folder));

    const std::string words = vocabulary.Serialize();
    RETURN_IF_ERROR(WriteFileAtomically((folder / kVocabularyFile).string(), words));
    DatasetMeta meta;
    meta.made_from = MadeFrom(options_, source_, given_);
    meta.vocabulary = vocabulary.size();
    meta.vocabulary_sha256 = Sha256Hex(words);
    const auto fill = [&](std::span<TokenFileWriter> writers) {
      std::vector<int32_t> ids;
      return source_.ForEachSentence([&](const Sentence& sentence) {
        ids.clear();
        for (const std::string_view token : sentence.tokens)
          ids.push_back(vocabulary.Find(token));
        return writers[static_cast<size_t>(sentence.split)].AppendSentence(ids);
      });
    };
    RETURN_IF_ERROR(WriteTokenFiles(options_.out, fill, meta));
    RETURN_IF_ERROR(
        WriteFileAtomically((folder / kMetaFile).string(), SerializeDatasetMeta(meta)));
    return meta;
  }

  // What a run that was killed has left of the files that it wrote: gigabytes, perhaps.
  static absl::Status RemoveLeftovers(const fs::path& folder) {
    std::vector<std::string> leftovers;
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
      for (TextSplit split : kTextSplits) {
        if (absl::StartsWith(entry.path().filename().string(),
                             absl::StrCat(TokenFileName(split), ".tmp-")))
          leftovers.push_back(entry.path().string());
      }
    }
    for (const std::string& path : leftovers) RETURN_IF_ERROR(RemoveTree(path));
    return absl::OkStatus();
  }

  const PrepareOptions& options_;
  SentenceSource& source_;
  const std::optional<GivenVocabulary>& given_;
  PreparationProgress& progress_;
  std::array<int64_t, 3> sentences_ = {};  // by TextSplit
};

// The folder's meta if it holds, undamaged, what would be written.
absl::StatusOr<DatasetMeta> ReadIfMadeFrom(const std::string& folder,
                                           const std::string& made_from) {
  const std::string path = (fs::path(folder) / kMetaFile).string();
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  ASSIGN_OR_RETURN(DatasetMeta meta, ParseDatasetMeta(text, path));
  if (meta.made_from != made_from) return absl::NotFoundError("made from something else");
  RETURN_IF_ERROR(TokenDataset::Open(folder).status());
  return meta;
}

}  // namespace

absl::StatusOr<PreparedText> PrepareText(const PrepareOptions& options,
                                         std::ostream& progress) {
  RETURN_IF_ERROR(CheckPrepareOptions(options));
  ASSIGN_OR_RETURN(const std::optional<GivenVocabulary> given,
                   ReadGivenVocabulary(options.vocabulary_file));
  PreparationProgress counter(
      (SentenceSource::kOpenWork + 2 * SentenceSource::kReadWork) *
          SentenceSource::TotalBytes(options),
      progress);
  ASSIGN_OR_RETURN(SentenceSource source, SentenceSource::Open(options, counter));

  PreparedText result;
  if (!options.force) {
    absl::StatusOr<DatasetMeta> there =
        ReadIfMadeFrom(options.out, MadeFrom(options, source, given));
    if (there.ok()) {
      result.meta = *std::move(there);
      result.was_there = true;
      return result;
    }
  }
  ASSIGN_OR_RETURN(result.meta, Preparation(options, source, given, counter).Run());
  return result;
}

}  // namespace moe
