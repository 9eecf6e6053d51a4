#include "server/transfer_messages.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/net/checksum.h"

namespace moe {
namespace {

// Of content in one message.
constexpr size_t kMessageBytes = size_t{1} << 20;

// Small pieces share a message, large ones have several.
class Packer {
 public:
  explicit Packer(const std::function<bool(const v1::FetchShardResponse&)>& write)
      : write_(write) {}

  bool Add(const v1::ShardPiece& piece) {
    size_t sent = 0;
    do {
      const size_t part =
          std::min(piece.content().size() - sent, kMessageBytes - filled_);
      v1::ShardPiece* const added = message_.add_pieces();
      added->set_piece(piece.piece());
      added->set_version(piece.version());
      added->set_content(piece.content().substr(sent, part));
      sent += part;
      filled_ += part;
      added->set_more(sent < piece.content().size());
      if (filled_ == kMessageBytes && !Flush()) return false;
    } while (sent < piece.content().size());
    return true;
  }
  // What has been added so far goes out.
  bool Flush() { return message_.pieces().empty() || Write(); }
  bool End() {
    message_.set_last(true);
    return Write();
  }

 private:
  bool Write() {
    message_.set_sequence(++written_);
    Seal(&message_);
    const bool taken = write_(message_);
    message_.Clear();
    filled_ = 0;
    return taken;
  }

  const std::function<bool(const v1::FetchShardResponse&)>& write_;
  v1::FetchShardResponse message_;
  size_t filled_ = 0;
  uint64_t written_ = 0;
};

}  // namespace

absl::Status SendPieces(int64_t pieces,
                        const std::function<absl::StatusOr<PieceBatch>(int64_t)>& read,
                        const std::function<bool(const v1::FetchShardResponse&)>& write) {
  Packer packer(write);
  for (int64_t next = 0; next < pieces;) {
    ASSIGN_OR_RETURN(const PieceBatch batch, read(next));
    for (const v1::ShardPiece& piece : batch.pieces) {
      if (!packer.Add(piece)) return absl::OkStatus();
    }
    if (!packer.Flush()) return absl::OkStatus();
    next = batch.next;
  }
  packer.End();
  return absl::OkStatus();
}

absl::Status PieceReceiver::Take(const v1::FetchShardResponse& message) {
  if (const absl::Status sound = CheckSeal(message); !sound.ok()) {
    return absl::UnavailableError(sound.message());
  }
  if (message.sequence() != taken_ + 1) {
    return absl::UnavailableError(
        absl::StrCat("message ", taken_ + 1, " was lost; ", message.sequence(), " came"));
  }
  ++taken_;
  last_ = message.last();
  for (const v1::ShardPiece& piece : message.pieces()) {
    RETURN_IF_ERROR(writer_.Add(piece));
  }
  return absl::OkStatus();
}

absl::Status PieceReceiver::Finish() const {
  if (!last_) {
    return absl::UnavailableError(
        absl::StrCat("no message after the first ", taken_, " came; they have an end"));
  }
  return writer_.Finish();
}

}  // namespace moe
