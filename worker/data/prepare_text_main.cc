#include <cstdint>
#include <iostream>
#include <optional>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "common/base/human.h"
#include "common/base/program.h"
#include "common/base/status_macros.h"
#include "worker/data/one_billion_words.h"
#include "worker/data/prepare_text.h"
#include "worker/data/text_paths.h"

ABSL_FLAG(std::string, text, "",
          "The text file to split into training, validation and test.");
ABSL_FLAG(std::string, train, "",
          "The training text, instead of --text: a file, a pattern ('news.en-*'), or "
          "several with commas between them, which follow one another.");
ABSL_FLAG(std::string, validation, "", "The validation text, with --train; likewise.");
ABSL_FLAG(std::string, test, "", "The test text, with --train; likewise.");
ABSL_FLAG(
    std::string, one_billion_words, "",
    "The folder of the One Billion Word Benchmark, instead of --text: trains on its "
    "99 training shards and tests on held-out shard 0, tokenised as they are.");
ABSL_FLAG(int32_t, validation_shards, 1,
          "With --one_billion_words: validate on held-out shards 1 to this one, of 49.");
ABSL_FLAG(std::string, out, "",
          "The folder to write. It is created, or its data replaced.");
ABSL_FLAG(std::string, vocabulary_file, "",
          "A vocabulary to use instead of the text's own: a word on each line (or a word "
          "and its count), <UNK> and </S> or <S> among them.");
ABSL_FLAG(
    std::optional<int64_t>, vocabulary_size, std::nullopt,
    "Keep at most so many words, the most frequent ones of the training text, <unk> "
    "and <eos> included. 0: no limit. By default 10000; 0 with "
    "--one_billion_words.");
ABSL_FLAG(
    std::optional<int64_t>, min_count, std::nullopt,
    "Keep only words that occur so often in the training text. By default 1; 3 with "
    "--one_billion_words.");
ABSL_FLAG(bool, lowercase, true, "Turn capitals into small letters.");
ABSL_FLAG(bool, tokenized, false,
          "The text is tokenised already, words separated by white space (as the Penn "
          "Treebank's, with <unk> inside): change nothing. Wins over --lowercase.");
ABSL_FLAG(double, validation_fraction, 0.05,
          "Share of --text to hold out for validation.");
ABSL_FLAG(double, test_fraction, 0.05, "Share of --text to hold out for the test.");
ABSL_FLAG(bool, strip_verse_references, false,
          "The text comes from `diatheke -f plain`: keep the verses' text, one verse a "
          "sentence, without references, psalm titles and markup.");
ABSL_FLAG(bool, force, false,
          "Write anew even if the folder holds the same data already.");

namespace {

constexpr char kUsage[] =
    R"(prepare_text turns text into the token files that workers train on.

Usage: prepare_text --text=FILE --out=FOLDER [flags]
       prepare_text --train=FILES --validation=FILES --test=FILES --out=FOLDER [flags]
       prepare_text --one_billion_words=FOLDER --out=FOLDER [flags]

A line of the UTF-8 text is a sentence. A text is split in blocks of 50 lines;
the held-out blocks are spread evenly over it. The folder then holds vocab.txt,
train.bin, validation.bin, test.bin and meta.json; if it does already, from the
same text and flags, nothing is done. The vocabulary's most frequent words come
first, after <unk> and <eos>. Texts may be larger than the memory.

Examples:
  deploy/kjv_text.sh kjv.txt
  prepare_text --text=kjv.txt --strip_verse_references --min_count=3 --out=data
  prepare_text --tokenized --train=ptb.train.txt --validation=ptb.valid.txt \
      --test=ptb.test.txt --out=ptb
  prepare_text --tokenized --vocabulary_file=words.txt --train='news/train-*' \
      --validation=news/dev --test=news/test-a,news/test-b --out=news-data
  prepare_text --one_billion_words=1-billion-word-language-modeling-benchmark-r13output \
      --vocabulary_file=vocabulary.txt --out=1b
)";

constexpr int64_t kVocabularySize = 10000;

// Sets what the flags say of the texts and the vocabulary.
absl::Status SetTexts(moe::PrepareOptions& options) {
  const std::string one_billion_words = absl::GetFlag(FLAGS_one_billion_words);
  options.text = absl::GetFlag(FLAGS_text);
  options.vocabulary_file = absl::GetFlag(FLAGS_vocabulary_file);
  options.tokenizer.tokenized = absl::GetFlag(FLAGS_tokenized);
  int64_t vocabulary_size = kVocabularySize;
  int64_t min_count = 1;
  ASSIGN_OR_RETURN(options.train, moe::ExpandTextPaths(absl::GetFlag(FLAGS_train)));
  ASSIGN_OR_RETURN(options.validation,
                   moe::ExpandTextPaths(absl::GetFlag(FLAGS_validation)));
  ASSIGN_OR_RETURN(options.test, moe::ExpandTextPaths(absl::GetFlag(FLAGS_test)));
  if (!one_billion_words.empty()) {
    if (!options.text.empty() || !options.train.empty() || !options.validation.empty() ||
        !options.test.empty()) {
      return absl::InvalidArgumentError(
          "--one_billion_words has texts for all splits: leave out --text, --train, "
          "--validation and --test");
    }
    ASSIGN_OR_RETURN(moe::OneBillionWords files,
                     moe::FindOneBillionWords(one_billion_words,
                                              absl::GetFlag(FLAGS_validation_shards)));
    options.train = std::move(files.train);
    options.validation = std::move(files.validation);
    options.test = std::move(files.test);
    options.tokenizer.tokenized = true;
    vocabulary_size = 0;
    min_count = moe::OneBillionWords::kMinCount;
  }
  if (!options.vocabulary_file.empty()) {
    vocabulary_size = 0;
    min_count = 1;
  }
  options.vocabulary_size =
      absl::GetFlag(FLAGS_vocabulary_size).value_or(vocabulary_size);
  options.min_count = absl::GetFlag(FLAGS_min_count).value_or(min_count);
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  moe::ParseCommandLine(argc, argv, kUsage);
  moe::PrepareOptions options;
  options.out = absl::GetFlag(FLAGS_out);
  options.tokenizer.lowercase = absl::GetFlag(FLAGS_lowercase);
  options.strip_verse_references = absl::GetFlag(FLAGS_strip_verse_references);
  options.validation_fraction = absl::GetFlag(FLAGS_validation_fraction);
  options.test_fraction = absl::GetFlag(FLAGS_test_fraction);
  options.force = absl::GetFlag(FLAGS_force);
  absl::Status status = SetTexts(options);
  if (status.ok()) status = moe::CheckPrepareOptions(options);
  if (absl::IsInvalidArgument(status))
    moe::ExitWithUsageError(std::string(status.message()));
  if (!status.ok()) {
    std::cerr << "prepare_text: " << status.message() << "\n";
    return 1;
  }
  const absl::StatusOr<moe::PreparedText> prepared = moe::PrepareText(options, std::cerr);
  if (!prepared.ok()) {
    std::cerr << "prepare_text: " << prepared.status().message() << "\n";
    return 1;
  }
  const moe::DatasetMeta& meta = prepared->meta;
  std::cout << options.out << (prepared->was_there ? " is up to date: " : ": ")
            << moe::FormatCount(meta.vocabulary) << " words in the vocabulary\n";
  for (const moe::TextSplit split : moe::kTextSplits) {
    const moe::DatasetMeta::File& file = meta.split(split);
    const double unknown = file.tokens == 0 ? 0 : 100.0 * file.unknown / file.tokens;
    std::cout << absl::StrFormat("  %-10s %9s lines %12s tokens %6.2f %% <unk>\n",
                                 moe::TextSplitName(split), moe::FormatCount(file.lines),
                                 moe::FormatCount(file.tokens), unknown);
  }
  std::cout << "  data id    " << moe::DatasetSha256(meta) << "\n";
  return std::cout.flush() ? 0 : 1;
}
