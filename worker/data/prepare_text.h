// Text files to the folder that TokenDataset reads.
#pragma once

#include <ostream>

#include "absl/status/statusor.h"
#include "worker/data/dataset_meta.h"
#include "worker/data/prepare_options.h"

namespace moe {

struct PreparedText {
  DatasetMeta meta;
  bool was_there = false;
};

// A non-blank line of text is a sentence, and its end becomes an <eos>. Ids after <unk>
// and <eos> are sorted by how often the training split has the word, most frequent first.
//
// Reads the texts three times (one that is split, four) and holds nothing of them in
// memory but the words that differ. Until everything is written the folder has no
// meta.json, so that it can't be taken for whole.
//
// progress gets a line every few seconds of work, and warnings.
absl::StatusOr<PreparedText> PrepareText(const PrepareOptions& options,
                                         std::ostream& progress);

}  // namespace moe
