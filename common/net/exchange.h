// ShardService.Exchange (expert.proto) over bytes: what its two ends send and get are messages as protobuf
// encodes them, so that the generated stub and service speak with them as well.
#pragma once

#include <google/protobuf/message_lite.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/support/sync_stream.h>

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/net/received.h"
#include "proto/moe/v1/expert.pb.h"

namespace moe {

// The bytes of the message, equal to those of its SerializeToString. Strings and bytes of at least
// kLeastShared are not copied: the slices share them, and hold the message.
grpc::ByteBuffer Encode(std::shared_ptr<const google::protobuf::MessageLite> message);
inline constexpr int kLeastShared = 4096;

// The message that the bytes are, with the rows of frames and replies that have at least kLeastShared
// bytes as payloads. DATA_LOSS if they are none, or damaged.
absl::StatusOr<Received<v1::ExchangeRequest>> DecodeRequest(
    const grpc::ByteBuffer& bytes);
absl::StatusOr<Received<v1::ExchangeResponse>> DecodeResponse(
    const grpc::ByteBuffer& bytes);

using ExchangeClientStream = grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;
using ExchangeServerStream = grpc::ServerReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;

// The context must outlive the stream.
std::unique_ptr<ExchangeClientStream> StartExchange(
    const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext* context);

// In place of v1::ShardService::Service.
class ExchangeService : public grpc::Service {
 public:
  ExchangeService();
  virtual grpc::Status Exchange(grpc::ServerContext* context,
                                ExchangeServerStream* stream) = 0;
};

}  // namespace moe
