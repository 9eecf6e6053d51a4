#include "worker/data/prepare_options.h"

#include <limits>

namespace moe {

const std::vector<std::string>& PrepareOptions::paths(TextSplit split) const {
  return split == TextSplit::kTrain        ? train
         : split == TextSplit::kValidation ? validation
                                           : test;
}

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
  if (!options.vocabulary_file.empty() &&
      (options.vocabulary_size != 0 || options.min_count != 1)) {
    return absl::InvalidArgumentError(
        "--vocabulary_file has all words of the vocabulary: leave out --vocabulary_size "
        "and --min_count");
  }
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

}  // namespace moe
