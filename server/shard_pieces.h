// Pieces of a shard (shard.h) as messages: what one copy of it has and another lacks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/moe/v1/transfer.pb.h"
#include "server/shard.h"

namespace moe {

// [pieces]
std::vector<uint64_t> PieceVersions(const Shard& shard);

struct PieceBatch {
  std::vector<v1::ShardPiece> pieces;
  // The first piece that was not looked at; the shard's number of pieces if all were.
  int64_t next = 0;
};
// The pieces from `first` on whose versions aren't those of `have`, until they have `bytes` together.
// have: [pieces], else INVALID_ARGUMENT.
absl::StatusOr<PieceBatch> ReadPieces(const Shard& shard, std::span<const uint64_t> have,
                                      int64_t first, size_t bytes);

// Puts pieces, which may come in several messages, into a shard.
class PieceWriter {
 public:
  explicit PieceWriter(Shard& shard) : shard_(shard) {}
  // INVALID_ARGUMENT if it is no piece of the shard; else an error is Shard::SetPiece's.
  absl::Status Add(const v1::ShardPiece& piece);
  // DATA_LOSS if the last piece isn't complete.
  absl::Status Finish() const;

 private:
  Shard& shard_;
  std::string content_;  // of a piece of which more follows
};

}  // namespace moe
