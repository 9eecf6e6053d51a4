// ShardTransferService over gRPC: another server fetches a shard.
#pragma once

#include <functional>
#include <utility>

#include "absl/status/statusor.h"
#include "proto/moe/v1/transfer.grpc.pb.h"
#include "server/shard_pieces.h"

namespace moe {

class TransferService : public v1::ShardTransferService::Service {
 public:
  // The next pieces that the request asks for, from `first` on. Any thread; may wait.
  using Read = std::function<absl::StatusOr<PieceBatch>(
      const v1::FetchShardRequest& request, int64_t first)>;
  explicit TransferService(Read read) : read_(std::move(read)) {}

  grpc::Status FetchShard(grpc::ServerContext* context,
                          const v1::FetchShardRequest* request,
                          grpc::ServerWriter<v1::FetchShardResponse>* writer) override;

 private:
  const Read read_;
};

}  // namespace moe
