#include "server/status_service.h"

#include "absl/strings/str_cat.h"
#include "common/net/grpc_status.h"

namespace moe {

grpc::Status StatusService::GetServerStatus(grpc::ServerContext*,
                                            const v1::GetServerStatusRequest*,
                                            v1::GetServerStatusResponse* response) {
  const std::shared_ptr<ShardHost> host = host_();
  if (host == nullptr) {
    response->set_server(server_);
    response->set_waiting_for("the coordinator to hand out shards");
    return grpc::Status::OK;
  }
  *response = host->Status();
  return grpc::Status::OK;
}

grpc::Status StatusService::GetTensorDigests(grpc::ServerContext* context,
                                             const v1::GetTensorDigestsRequest*,
                                             v1::GetTensorDigestsResponse* response) {
  const std::shared_ptr<ShardHost> host = host_();
  if (host == nullptr) {
    return ToGrpcStatus(
        absl::UnavailableError(absl::StrCat(server_, " has no shards yet")));
  }
  absl::StatusOr<v1::GetTensorDigestsResponse> digests =
      host->Digests([context] { return context->IsCancelled(); });
  if (!digests.ok()) return ToGrpcStatus(digests.status());
  *response = *std::move(digests);
  return grpc::Status::OK;
}

}  // namespace moe
