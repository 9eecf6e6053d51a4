#include "server/transfer_service.h"

#include <algorithm>
#include <string>

#include "common/net/grpc_status.h"

namespace moe {
namespace {

// Of content in one message.
constexpr size_t kMessageBytes = size_t{1} << 20;

using Writer = grpc::ServerWriter<v1::FetchShardResponse>;

// Small pieces share a message, large ones have several.
bool WriteAll(const std::vector<v1::ShardPiece>& pieces, Writer* writer) {
  v1::FetchShardResponse response;
  size_t filled = 0;
  const auto flush = [&] {
    const bool written = response.pieces().empty() || writer->Write(response);
    response.Clear();
    filled = 0;
    return written;
  };
  for (const v1::ShardPiece& piece : pieces) {
    size_t sent = 0;
    do {
      const size_t part = std::min(piece.content().size() - sent, kMessageBytes - filled);
      v1::ShardPiece* const added = response.add_pieces();
      added->set_piece(piece.piece());
      added->set_version(piece.version());
      added->set_content(piece.content().substr(sent, part));
      sent += part;
      filled += part;
      added->set_more(sent < piece.content().size());
      if (filled == kMessageBytes && !flush()) return false;
    } while (sent < piece.content().size());
  }
  return flush();
}

}  // namespace

grpc::Status TransferService::FetchShard(grpc::ServerContext* context,
                                         const v1::FetchShardRequest* request,
                                         Writer* writer) {
  const int64_t pieces = request->versions_size();
  for (int64_t next = 0; next < pieces && !context->IsCancelled();) {
    const absl::StatusOr<PieceBatch> batch = read_(*request, next);
    if (!batch.ok()) return ToGrpcStatus(batch.status());
    if (!WriteAll(batch->pieces, writer)) break;
    next = batch->next;
  }
  return grpc::Status::OK;
}

}  // namespace moe
