#include "worker/data/prepare_text.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "common/base/string_view.h"
#include "common/io/file.h"
#include "common/io/mapped_file.h"
#include "common/io/sha256.h"
#include "nlohmann/json.hpp"
#include "worker/data/token_dataset.h"
#include "worker/data/verse_filter.h"
#include "worker/data/vocabulary.h"

namespace moe {
namespace {

constexpr int64_t kBlockLines = 50;
// So many blocks at least for the smaller held-out split.
constexpr double kMinHeldOutBlocks = 4;
constexpr absl::Duration kReportEvery = absl::Seconds(2);
constexpr int kPasses = 3;  // count lines, count words, write

class Progress {
 public:
  Progress(int64_t total, std::ostream& out) : total_(total), out_(out) {}

  void Advance(int64_t bytes) {
    done_ += bytes;
    const absl::Time now = absl::Now();
    if (now < next_report_) return;
    next_report_ = now + kReportEvery;
    const double share = static_cast<double>(done_) / static_cast<double>(total_);
    out_ << absl::StrFormat("preparing text: %.0f %%, %s left\n", 100 * share,
                            FormatTimeSpan((now - start_) * ((1 - share) / share)))
         << std::flush;
  }

 private:
  const int64_t total_;
  std::ostream& out_;
  int64_t done_ = 0;
  const absl::Time start_ = absl::Now();
  absl::Time next_report_ = start_ + kReportEvery;
};

struct Input {
  std::string path;
  std::unique_ptr<MappedFile> file;
  std::string sha256;
};

// Calls fn for each sentence of the input.
void ForEachSentence(const Input& input, bool strip_verse_references, Progress& progress,
                     const std::function<void(std::string_view)>& fn) {
  VerseFilter filter(fn);
  std::string_view rest = input.file->bytes();
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = rest.substr(0, end);
    const size_t taken = std::min(end + 1, rest.size());
    rest.remove_prefix(taken);
    progress.Advance(static_cast<int64_t>(taken));
    if (strip_verse_references) {
      filter.Line(line);
    } else if (!absl::StripAsciiWhitespace(ToAbsl(line)).empty()) {
      fn(line);
    }
  }
  if (strip_verse_references) filter.Finish();
}

absl::Status CheckUtf8(const Input& input) {
  const std::string_view bytes = input.file->bytes();
  int64_t number = 1;
  for (size_t begin = 0; begin < bytes.size(); ++number) {
    const size_t end = std::min(bytes.find('\n', begin), bytes.size());
    if (!IsUtf8(bytes.substr(begin, end - begin))) {
      return absl::InvalidArgumentError(
          absl::StrCat(input.path, " line ", number,
                       " is not UTF-8; convert the file, for example with iconv"));
    }
    begin = end + 1;
  }
  return absl::OkStatus();
}

// Which split each sentence of one text belongs to.
class BlockSplitter {
 public:
  BlockSplitter(int64_t lines, double validation_fraction, double test_fraction)
      : validation_end_(Threshold(validation_fraction)),
        test_end_(Threshold(validation_fraction + test_fraction)) {
    double smallest = 1;
    for (double fraction : {validation_fraction, test_fraction}) {
      if (fraction > 0) smallest = std::min(smallest, fraction);
    }
    const double lines_for_all =
        static_cast<double>(lines) * smallest / kMinHeldOutBlocks;
    block_lines_ = std::clamp<int64_t>(std::llround(lines_for_all), 1, kBlockLines);
  }

  TextSplit SplitOf(int64_t line) const {
    // Multiples of the golden ratio, modulo 1 in units of 2^-32, are spread evenly over
    // [0, 1), and so are those that fall into one interval.
    constexpr uint32_t kGoldenRatio = 0x9E3779B9;
    constexpr uint32_t kHalf = 0x80000000;  // the first block trains
    const uint32_t point =
        static_cast<uint32_t>(line / block_lines_) * kGoldenRatio + kHalf;
    if (point < validation_end_) return TextSplit::kValidation;
    return point < test_end_ ? TextSplit::kTest : TextSplit::kTrain;
  }

 private:
  static uint64_t Threshold(double fraction) {
    return static_cast<uint64_t>(std::llround(std::ldexp(fraction, 32)));
  }

  const uint64_t validation_end_;
  const uint64_t test_end_;
  int64_t block_lines_ = 1;
};

// Whatever the output depends on, and nothing else.
std::string MadeFrom(const PrepareOptions& options, const std::vector<Input>& inputs) {
  nlohmann::ordered_json json;
  json["program"] = "prepare_text 1";
  for (const Input& input : inputs) json["texts_sha256"].push_back(input.sha256);
  json["lowercase"] = options.tokenizer.lowercase;
  json["tokenized"] = options.tokenizer.tokenized;
  json["strip_verse_references"] = options.strip_verse_references;
  json["vocabulary_size"] = options.vocabulary_size;
  json["min_count"] = options.min_count;
  if (inputs.size() == 1) {
    json["validation_fraction"] = options.validation_fraction;
    json["test_fraction"] = options.test_fraction;
  }
  return json.dump();
}

class Preparation {
 public:
  Preparation(const PrepareOptions& options, std::vector<Input> inputs,
              std::ostream& progress)
      : options_(options),
        inputs_(std::move(inputs)),
        progress_(kPasses * TotalBytes(inputs_), progress) {}

  absl::StatusOr<DatasetMeta> Run() {
    int64_t lines = 0;
    for (const Input& input : inputs_) {
      RETURN_IF_ERROR(CheckUtf8(input));
      ForEachSentence(input, options_.strip_verse_references, progress_,
                      [&](std::string_view) { ++lines; });
    }
    if (lines == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          inputs_[0].path, options_.strip_verse_references
                               ? " has no verses (lines such as \"Genesis 1:1: In ...\")"
                               : " has no text"));
    }
    splitter_ = std::make_unique<BlockSplitter>(lines, options_.validation_fraction,
                                                options_.test_fraction);
    CountWords();
    RETURN_IF_ERROR(CheckSplits(lines));
    const Vocabulary vocabulary =
        Vocabulary::Build(counts_, options_.vocabulary_size, options_.min_count);
    if (vocabulary.size() < 3) {
      return absl::InvalidArgumentError(absl::StrCat(
          "no word of the training text occurs --min_count=", options_.min_count,
          " times"));
    }
    return Write(vocabulary);
  }

 private:
  static int64_t TotalBytes(const std::vector<Input>& inputs) {
    int64_t bytes = 0;
    for (const Input& input : inputs)
      bytes += static_cast<int64_t>(input.file->bytes().size());
    return bytes;
  }

  void ForEachTokenizedSentence(
      const std::function<void(TextSplit, const std::vector<std::string>&)>& fn) {
    int64_t line = 0;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      ForEachSentence(inputs_[i], options_.strip_verse_references, progress_,
                      [&](std::string_view text) {
                        const TextSplit split = inputs_.size() == 1
                                                    ? splitter_->SplitOf(line)
                                                    : kTextSplits[i];
                        ++line;
                        const auto tokens = Tokenize(text, options_.tokenizer);
                        if (!tokens.empty()) fn(split, tokens);
                      });
    }
  }

  void CountWords() {
    ForEachTokenizedSentence(
        [this](TextSplit split, const std::vector<std::string>& tokens) {
          DatasetMeta::File& file = meta_.split(split);
          ++file.lines;
          file.tokens += static_cast<int64_t>(tokens.size()) + 1;
          if (split != TextSplit::kTrain) return;
          for (const std::string& token : tokens) ++counts_[token];
        });
  }

  absl::Status CheckSplits(int64_t lines) {
    for (TextSplit split : kTextSplits) {
      if (meta_.split(split).lines > 0) continue;
      const bool wanted = inputs_.size() == 3 || split == TextSplit::kTrain ||
                          (split == TextSplit::kValidation ? options_.validation_fraction
                                                           : options_.test_fraction) > 0;
      if (!wanted) continue;
      const std::string name = TextSplitName(split);
      if (inputs_.size() == 3) {
        return absl::InvalidArgumentError(
            absl::StrCat(inputs_[static_cast<size_t>(split)].path, " has no text"));
      }
      return absl::InvalidArgumentError(absl::StrCat(
          inputs_[0].path, " is too short: of its ", FormatCount(lines),
          " lines none falls to the ", name, " split; give a longer text, or other --",
          split == TextSplit::kTrain ? "validation_fraction and --test" : name,
          "_fraction"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<DatasetMeta> Write(const Vocabulary& vocabulary) {
    const std::filesystem::path folder(options_.out);
    RETURN_IF_ERROR(MakeDirs(options_.out));
    // From here on the folder is incomplete until the new one is written.
    RETURN_IF_ERROR(RemoveTree((folder / kMetaFile).string()));

    const std::string words = vocabulary.Serialize();
    RETURN_IF_ERROR(WriteFileAtomically((folder / kVocabularyFile).string(), words));
    meta_.vocabulary = vocabulary.size();
    meta_.vocabulary_sha256 = Sha256Hex(words);

    // Ids take less memory than the text, which is mapped: they may wait for their file.
    std::array<std::vector<int32_t>, 3> ids;
    for (TextSplit split : kTextSplits) {
      ids[static_cast<size_t>(split)].reserve(meta_.split(split).tokens);
    }
    ForEachTokenizedSentence(
        [&](TextSplit split, const std::vector<std::string>& tokens) {
          std::vector<int32_t>& out = ids[static_cast<size_t>(split)];
          for (const std::string& token : tokens) {
            out.push_back(vocabulary.Find(token));
            if (out.back() == Vocabulary::kUnknown) ++meta_.split(split).unknown;
          }
          out.push_back(Vocabulary::kEndOfSentence);
        });
    for (TextSplit split : kTextSplits) {
      const std::vector<int32_t>& tokens = ids[static_cast<size_t>(split)];
      const std::string_view bytes(reinterpret_cast<const char*>(tokens.data()),
                                   tokens.size() * sizeof(int32_t));
      meta_.split(split).sha256 = Sha256Hex(bytes);
      RETURN_IF_ERROR(
          WriteFileAtomically((folder / TokenFileName(split)).string(), bytes));
    }
    meta_.made_from = MadeFrom(options_, inputs_);
    RETURN_IF_ERROR(
        WriteFileAtomically((folder / kMetaFile).string(), SerializeDatasetMeta(meta_)));
    return meta_;
  }

  const PrepareOptions& options_;
  const std::vector<Input> inputs_;
  Progress progress_;
  std::unique_ptr<BlockSplitter> splitter_;
  absl::flat_hash_map<std::string, int64_t> counts_;  // of the training split
  DatasetMeta meta_;
};

// The folder's meta if it holds, undamaged, what would be written.
absl::StatusOr<DatasetMeta> ReadIfMadeFrom(const std::string& folder,
                                           const std::string& made_from) {
  const std::string path = (std::filesystem::path(folder) / kMetaFile).string();
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  ASSIGN_OR_RETURN(DatasetMeta meta, ParseDatasetMeta(text, path));
  if (meta.made_from != made_from) return absl::NotFoundError("made from something else");
  RETURN_IF_ERROR(TokenDataset::Open(folder).status());
  return meta;
}

}  // namespace

absl::Status CheckPrepareOptions(const PrepareOptions& options) {
  const bool three =
      !options.train.empty() && !options.validation.empty() && !options.test.empty();
  const bool none =
      options.train.empty() && options.validation.empty() && options.test.empty();
  if (options.text.empty() ? !three : !none) {
    return absl::InvalidArgumentError(
        "give either --text, or --train, --validation and --test");
  }
  if (options.out.empty())
    return absl::InvalidArgumentError("give --out, the folder to write");
  if (options.vocabulary_size != 0 && options.vocabulary_size < 3) {
    return absl::InvalidArgumentError(
        "--vocabulary_size must be at least 3 (<unk>, <eos> and a "
        "word), or 0 for no limit");
  }
  if (options.vocabulary_size > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError("--vocabulary_size must be below 2^31");
  }
  if (options.min_count < 1)
    return absl::InvalidArgumentError("--min_count must be at least 1");
  const double validation = options.validation_fraction;
  const double test = options.test_fraction;
  if (!(validation >= 0 && test >= 0 && validation + test < 1)) {
    return absl::InvalidArgumentError(
        "--validation_fraction and --test_fraction must be at least 0, and less than 1 "
        "together");
  }
  return absl::OkStatus();
}

absl::StatusOr<PreparedText> PrepareText(const PrepareOptions& options,
                                         std::ostream& progress) {
  RETURN_IF_ERROR(CheckPrepareOptions(options));
  std::vector<Input> inputs;
  const std::vector<std::string> paths =
      options.text.empty() ? std::vector{options.train, options.validation, options.test}
                           : std::vector{options.text};
  for (const std::string& path : paths) {
    Input input;
    input.path = path;
    ASSIGN_OR_RETURN(input.file, MappedFile::Open(path));
    input.sha256 = Sha256Hex(input.file->bytes());
    if (input.file->bytes().empty()) {
      return absl::InvalidArgumentError(absl::StrCat(path, " is empty"));
    }
    inputs.push_back(std::move(input));
  }

  PreparedText result;
  if (!options.force) {
    absl::StatusOr<DatasetMeta> there =
        ReadIfMadeFrom(options.out, MadeFrom(options, inputs));
    if (there.ok()) {
      result.meta = *std::move(there);
      result.was_there = true;
      return result;
    }
  }
  ASSIGN_OR_RETURN(result.meta, Preparation(options, std::move(inputs), progress).Run());
  return result;
}

}  // namespace moe
