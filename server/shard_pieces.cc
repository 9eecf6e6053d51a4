#include "server/shard_pieces.h"

#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace moe {

std::vector<uint64_t> PieceVersions(const Shard& shard) {
  std::vector<uint64_t> versions;
  versions.reserve(shard.pieces());
  for (int64_t p = 0; p < shard.pieces(); ++p) versions.push_back(shard.PieceVersion(p));
  return versions;
}

absl::StatusOr<PieceBatch> ReadPieces(const Shard& shard, std::span<const uint64_t> have,
                                      int64_t first, size_t bytes) {
  if (static_cast<int64_t>(have.size()) != shard.pieces()) {
    return absl::InvalidArgumentError(absl::StrCat(
        shard.spec().id, " has ", shard.pieces(), " pieces, not ", have.size()));
  }
  PieceBatch batch;
  size_t taken = 0;
  for (batch.next = first; batch.next < shard.pieces() && taken < bytes; ++batch.next) {
    const uint64_t version = shard.PieceVersion(batch.next);
    if (version == have[batch.next]) continue;
    v1::ShardPiece& piece = batch.pieces.emplace_back();
    piece.set_piece(batch.next);
    piece.set_version(version);
    piece.set_content(shard.Piece(batch.next));
    taken += piece.content().size();
  }
  return batch;
}

absl::Status PieceWriter::Add(const v1::ShardPiece& piece) {
  if (piece.piece() >= static_cast<uint64_t>(shard_.pieces())) {
    return absl::InvalidArgumentError(
        absl::StrCat(shard_.spec().id, " has no piece ", piece.piece()));
  }
  if (piece.more() || !content_.empty()) content_ += piece.content();
  if (piece.more()) return absl::OkStatus();
  const std::string joined = std::exchange(content_, "");
  return shard_.SetPiece(static_cast<int64_t>(piece.piece()), piece.version(),
                         joined.empty() ? piece.content() : joined);
}

absl::Status PieceWriter::Finish() const {
  if (content_.empty()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("a piece of ", shard_.spec().id, " broke off"));
}

}  // namespace moe
