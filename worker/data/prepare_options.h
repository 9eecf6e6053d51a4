// What prepare_text is asked to do.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/data/dataset_meta.h"
#include "worker/data/tokenizer.h"

namespace moe {

struct PrepareOptions {
  // Either one text, which is split, or the files of all three splits, which follow one
  // another in this order.
  std::string text;
  std::vector<std::string> train;
  std::vector<std::string> validation;
  std::vector<std::string> test;
  std::string out;

  TokenizerOptions tokenizer;
  bool strip_verse_references = false;  // see verse_filter.h
  // Its words are the vocabulary (Vocabulary::ParseForeign); empty: the words of the
  // training split are.
  std::string vocabulary_file;
  // Without vocabulary_file: at most so many words, with <unk> and <eos>; 0: no limit.
  int64_t vocabulary_size = 0;
  // Without vocabulary_file: only words that occur so often.
  int64_t min_count = 1;
  // Shares of `text` that are held out (block_splitter.h), each in [0, 1).
  double validation_fraction = 0.05;
  double test_fraction = 0.05;
  // Do the work even if the output is there already.
  bool force = false;

  // Those of a split, without `text`.
  const std::vector<std::string>& paths(TextSplit split) const;
};

// INVALID_ARGUMENT, naming the flag of prepare_text, if the options make no sense.
absl::Status CheckPrepareOptions(const PrepareOptions& options);

}  // namespace moe
