#include <iostream>
#include <string>

#include "absl/flags/flag.h"
#include "absl/strings/str_format.h"
#include "common/base/human.h"
#include "common/base/program.h"
#include "worker/data/prepare_text.h"

ABSL_FLAG(std::string, text, "",
          "The text file to split into training, validation and test.");
ABSL_FLAG(std::string, train, "", "The training text, instead of --text.");
ABSL_FLAG(std::string, validation, "", "The validation text, with --train.");
ABSL_FLAG(std::string, test, "", "The test text, with --train.");
ABSL_FLAG(std::string, out, "",
          "The folder to write. It is created, or its data replaced.");
ABSL_FLAG(
    int64_t, vocabulary_size, 10000,
    "Keep at most so many words, the most frequent ones of the training text, <unk> and "
    "<eos> included. 0: no limit.");
ABSL_FLAG(int64_t, min_count, 1,
          "Keep only words that occur so often in the training text.");
ABSL_FLAG(bool, lowercase, true, "Turn capitals into small letters.");
ABSL_FLAG(bool, tokenized, false,
          "The text is tokenised already, words separated by white space (as the Penn "
          "Treebank's, "
          "with <unk> inside): change nothing. Wins over --lowercase.");
ABSL_FLAG(double, validation_fraction, 0.05,
          "Share of --text to hold out for validation.");
ABSL_FLAG(double, test_fraction, 0.05, "Share of --text to hold out for the test.");
ABSL_FLAG(bool, strip_verse_references, false,
          "The text comes from `diatheke -f plain`: keep the verses' text, one verse a "
          "sentence, "
          "without references, psalm titles and markup.");
ABSL_FLAG(bool, force, false,
          "Write anew even if the folder holds the same data already.");

namespace {

constexpr char kUsage[] =
    R"(prepare_text turns text into the token files that workers train on.

Usage: prepare_text --text=FILE --out=FOLDER [flags]
       prepare_text --train=FILE --validation=FILE --test=FILE --out=FOLDER [flags]

A line of the UTF-8 text is a sentence. A text is split in blocks of 50 lines;
the held-out blocks are spread evenly over it. The folder then holds vocab.txt,
train.bin, validation.bin, test.bin and meta.json; if it does already, from the
same text and flags, nothing is done.

Examples:
  deploy/kjv_text.sh kjv.txt
  prepare_text --text=kjv.txt --strip_verse_references --min_count=3 --out=data
  prepare_text --tokenized --train=ptb.train.txt --validation=ptb.valid.txt \
      --test=ptb.test.txt --out=ptb
)";

}  // namespace

int main(int argc, char** argv) {
  moe::ParseCommandLine(argc, argv, kUsage);
  moe::PrepareOptions options;
  options.text = absl::GetFlag(FLAGS_text);
  options.train = absl::GetFlag(FLAGS_train);
  options.validation = absl::GetFlag(FLAGS_validation);
  options.test = absl::GetFlag(FLAGS_test);
  options.out = absl::GetFlag(FLAGS_out);
  options.tokenizer.lowercase = absl::GetFlag(FLAGS_lowercase);
  options.tokenizer.tokenized = absl::GetFlag(FLAGS_tokenized);
  options.strip_verse_references = absl::GetFlag(FLAGS_strip_verse_references);
  options.vocabulary_size = absl::GetFlag(FLAGS_vocabulary_size);
  options.min_count = absl::GetFlag(FLAGS_min_count);
  options.validation_fraction = absl::GetFlag(FLAGS_validation_fraction);
  options.test_fraction = absl::GetFlag(FLAGS_test_fraction);
  options.force = absl::GetFlag(FLAGS_force);

  if (const absl::Status status = moe::CheckPrepareOptions(options); !status.ok()) {
    moe::ExitWithUsageError(std::string(status.message()));
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
