// ServerStatusService over gRPC: what an operator may ask a server.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "proto/moe/v1/status.grpc.pb.h"
#include "server/shard_host.h"

namespace moe {

class StatusService : public v1::ServerStatusService::Service {
 public:
  // server: member id. host: the generation at present; null before the first.
  StatusService(std::string server, std::function<std::shared_ptr<ShardHost>()> host)
      : server_(std::move(server)), host_(std::move(host)) {}

  grpc::Status GetServerStatus(grpc::ServerContext* context,
                               const v1::GetServerStatusRequest* request,
                               v1::GetServerStatusResponse* response) override;
  grpc::Status GetTensorDigests(grpc::ServerContext* context,
                                const v1::GetTensorDigestsRequest* request,
                                v1::GetTensorDigestsResponse* response) override;

 private:
  const std::string server_;
  const std::function<std::shared_ptr<ShardHost>()> host_;
};

}  // namespace moe
