#include "server/shard.h"

#include "absl/strings/str_cat.h"

namespace moe {

absl::Status WrongPiece(const ShardSpec& spec, int64_t piece, size_t bytes,
                        size_t expected) {
  return absl::InvalidArgumentError(absl::StrCat(
      "piece ", piece, " of ", spec.id, " has ", bytes, " bytes instead of ", expected));
}

}  // namespace moe
