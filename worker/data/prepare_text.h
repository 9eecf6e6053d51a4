// Text files to the folder that TokenDataset reads.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/data/dataset_meta.h"
#include "worker/data/tokenizer.h"

namespace moe {

struct PrepareOptions {
  // Either one text, which is split, or all three.
  std::string text;
  std::string train;
  std::string validation;
  std::string test;
  std::string out;

  TokenizerOptions tokenizer;
  bool strip_verse_references = false;  // see verse_filter.h
  // The vocabulary is that of the training split; with <unk> and <eos>; 0: no limit.
  int64_t vocabulary_size = 0;
  int64_t min_count = 1;
  // Shares of `text` that are held out, each in [0, 1).
  double validation_fraction = 0.05;
  double test_fraction = 0.05;
  // Do the work even if the output is there already.
  bool force = false;
};

// INVALID_ARGUMENT, naming the flag of prepare_text, if the options make no sense.
absl::Status CheckPrepareOptions(const PrepareOptions& options);

struct PreparedText {
  DatasetMeta meta;
  bool was_there = false;
};

// A non-blank line of text is a sentence.
//
// `text` is split in blocks of 50 lines (fewer in a short text), each of which goes whole
// to one of the splits. Held-out blocks are spread evenly over the text, so that they
// resemble the whole, and depend on the number of lines and the fractions alone.
//
// progress gets a line every few seconds of work.
absl::StatusOr<PreparedText> PrepareText(const PrepareOptions& options,
                                         std::ostream& progress);

}  // namespace moe
