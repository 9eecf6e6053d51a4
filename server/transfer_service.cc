#include "server/transfer_service.h"

#include <string>

#include "common/net/checksum.h"
#include "common/net/grpc_status.h"
#include "server/transfer_messages.h"

namespace moe {

grpc::Status TransferService::FetchShard(
    grpc::ServerContext* context, const v1::FetchShardRequest* request,
    grpc::ServerWriter<v1::FetchShardResponse>* writer) {
  if (const absl::Status sound = CheckSeal(*request); !sound.ok()) {
    return ToGrpcStatus(absl::UnavailableError(sound.message()));
  }
  return ToGrpcStatus(SendPieces(
      request->versions_size(), [&](int64_t first) { return read_(*request, first); },
      [&](const v1::FetchShardResponse& message) {
        return !context->IsCancelled() && writer->Write(message);
      }));
}

}  // namespace moe
