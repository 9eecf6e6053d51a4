#include "common/net/exchange.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream.h>
#include <grpcpp/impl/rpc_service_method.h>
#include <grpcpp/support/method_handler.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "common/base/status_macros.h"
#include "common/net/checksum.h"
#include "common/net/parse_apart.h"
#include "glog/logging.h"

namespace moe {
namespace {

using google::protobuf::MessageLite;

constexpr char kMethod[] = "/moe.v1.ShardService/Exchange";

// What isn't shared lies in blocks of this size.
constexpr size_t kBlock = kLeastShared;

// Collects a message as slices.
class SliceOutput final : public google::protobuf::io::ZeroCopyOutputStream {
 public:
  explicit SliceOutput(std::shared_ptr<const MessageLite> message)
      : message_(std::move(message)) {}

  bool Next(void** data, int* size) override {
    if (used_ == block_.size()) {
      EndPiece();
      block_ = grpc::Slice(kBlock);
      used_ = begin_ = 0;
    }
    *data = const_cast<uint8_t*>(block_.begin()) + used_;
    *size = static_cast<int>(block_.size() - used_);
    used_ = block_.size();
    return true;
  }
  void BackUp(int count) override { used_ -= count; }
  int64_t ByteCount() const override { return shared_ + own_ + (used_ - begin_); }
  bool AllowsAliasing() const override { return true; }

  bool WriteAliasedRaw(const void* data, int size) override {
    if (size < kLeastShared) return Copy(static_cast<const char*>(data), size);
    EndPiece();
    pieces_.emplace_back(
        const_cast<void*>(data), size,
        [](void* holder) {
          delete static_cast<std::shared_ptr<const MessageLite>*>(holder);
        },
        new std::shared_ptr<const MessageLite>(message_));
    shared_ += size;
    return true;
  }

  grpc::ByteBuffer Finish() {
    EndPiece();
    return grpc::ByteBuffer(pieces_.data(), pieces_.size());
  }

 private:
  bool Copy(const char* data, int left) {
    while (left > 0) {
      void* out = nullptr;
      int size = 0;
      Next(&out, &size);
      const int count = std::min(size, left);
      std::copy_n(data, count, static_cast<char*>(out));
      BackUp(size - count);
      data += count;
      left -= count;
    }
    return true;
  }

  void EndPiece() {
    if (used_ == begin_) return;
    pieces_.push_back(block_.sub(begin_, used_));
    own_ += static_cast<int64_t>(used_ - begin_);
    begin_ = used_;
  }

  const std::shared_ptr<const MessageLite> message_;
  std::vector<grpc::Slice> pieces_;
  // The block that is being filled: up to `begin_` it is in pieces_ already.
  grpc::Slice block_;
  size_t begin_ = 0;
  size_t used_ = 0;
  int64_t shared_ = 0;
  int64_t own_ = 0;
};

// The fields whose numbers are copied at once to where they are needed.
template <typename M>
const ApartFields& RowFields() {
  static const auto* const fields = [] {
    const google::protobuf::FieldDescriptor* const all[] = {
        v1::ForwardFrame::descriptor()->FindFieldByNumber(
            v1::ForwardFrame::kXFieldNumber),
        v1::BackwardFrame::descriptor()->FindFieldByNumber(
            v1::BackwardFrame::kDyFieldNumber),
        v1::GroupOutput::descriptor()->FindFieldByNumber(v1::GroupOutput::kYFieldNumber),
        v1::GroupGradient::descriptor()->FindFieldByNumber(
            v1::GroupGradient::kDxFieldNumber),
    };
    return new ApartFields(M::descriptor(), all);
  }();
  return *fields;
}

template <typename M>
absl::StatusOr<Received<M>> Decode(const grpc::ByteBuffer& bytes) {
  auto slices = std::make_shared<std::vector<grpc::Slice>>();
  Pieces pieces;
  if (bytes.Dump(slices.get()).ok()) {
    for (const grpc::Slice& slice : *slices) {
      pieces.Append({reinterpret_cast<const char*>(slice.begin()), slice.size()});
    }
  }
  Received<M> received;
  if (!ParseApart(pieces, RowFields<M>(), kLeastShared, &received.message,
                  &received.payloads)) {
    return absl::DataLossError("a message was damaged on its way: it can't be read");
  }
  RETURN_IF_ERROR(CheckSeal(received.message, received.payloads));
  if (!received.payloads.empty()) received.bytes = std::move(slices);
  return received;
}

}  // namespace

grpc::ByteBuffer Encode(std::shared_ptr<const MessageLite> message) {
  const size_t size = message->ByteSizeLong();
  if (size <= kBlock) {
    const grpc::Slice slice(size);
    message->SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
    return grpc::ByteBuffer(&slice, 1);
  }
  SliceOutput output(message);
  {
    google::protobuf::io::CodedOutputStream coded(&output);
    coded.EnableAliasing(true);
    message->SerializeWithCachedSizes(&coded);
    CHECK(!coded.HadError());
  }
  CHECK_EQ(output.ByteCount(), static_cast<int64_t>(size));
  return output.Finish();
}

absl::StatusOr<Received<v1::ExchangeRequest>> DecodeRequest(
    const grpc::ByteBuffer& bytes) {
  return Decode<v1::ExchangeRequest>(bytes);
}

absl::StatusOr<Received<v1::ExchangeResponse>> DecodeResponse(
    const grpc::ByteBuffer& bytes) {
  return Decode<v1::ExchangeResponse>(bytes);
}

std::unique_ptr<ExchangeClientStream> StartExchange(
    const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext* context) {
  const grpc::internal::RpcMethod method(
      kMethod, grpc::internal::RpcMethod::BIDI_STREAMING, channel);
  return std::unique_ptr<ExchangeClientStream>(
      grpc::internal::ClientReaderWriterFactory<
          grpc::ByteBuffer, grpc::ByteBuffer>::Create(channel.get(), method, context));
}

ExchangeService::ExchangeService() {
  AddMethod(new grpc::internal::RpcServiceMethod(
      kMethod, grpc::internal::RpcMethod::BIDI_STREAMING,
      new grpc::internal::BidiStreamingHandler<ExchangeService, grpc::ByteBuffer,
                                               grpc::ByteBuffer>(
          [](ExchangeService* service, grpc::ServerContext* context,
             ExchangeServerStream* stream) { return service->Exchange(context, stream); },
          this)));
}

}  // namespace moe
