// The messages in which the pieces of a shard travel. Each is sealed and numbered, and the last says that it
// is: what was damaged or lost on its way is never taken for less that has changed.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/moe/v1/transfer.pb.h"
#include "server/shard.h"
#include "server/shard_pieces.h"

namespace moe {

// Calls `read` with the first piece that hasn't been read yet until it has read all `pieces`, and `write`
// with each message, the last included. False from write ends it, and so does an error of read, which is
// returned.
absl::Status SendPieces(int64_t pieces,
                        const std::function<absl::StatusOr<PieceBatch>(int64_t)>& read,
                        const std::function<bool(const v1::FetchShardResponse&)>& write);

// Puts what SendPieces wrote into a shard. Then, or if it ends early, the same pieces may be fetched anew.
class PieceReceiver {
 public:
  explicit PieceReceiver(Shard& shard) : writer_(shard) {}
  // UNAVAILABLE if it was damaged on its way, or others were lost; else an error is PieceWriter::Add's.
  absl::Status Take(const v1::FetchShardResponse& message);
  // UNAVAILABLE unless all messages have come.
  absl::Status Finish() const;

 private:
  PieceWriter writer_;
  uint64_t taken_ = 0;
  bool last_ = false;
};

}  // namespace moe
