#include "common/net/exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/net/channel.h"
#include "common/net/checksum.h"
#include "common/net/rpc_server.h"
#include "proto/moe/v1/expert.grpc.pb.h"

namespace moe {
namespace {

std::string Joined(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(bytes.Dump(&slices).ok());
  std::string all;
  for (const grpc::Slice& slice : slices) {
    all.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return all;
}

std::string Pattern(size_t size) {
  std::string bytes;
  for (size_t i = 0; i < size; ++i) bytes.push_back(static_cast<char>(i * 31 + i / 251));
  return bytes;
}

// A frame for each size: its rows have so many bytes, and its routing half as many.
v1::ExchangeRequest MakeForward(const std::vector<size_t>& sizes) {
  v1::ExchangeRequest request;
  request.set_generation(3);
  request.set_sequence(300);
  request.mutable_forward()->mutable_id()->set_step(70000);
  for (const size_t size : sizes) {
    v1::ForwardFrame& frame = *request.mutable_forward()->add_frames();
    frame.set_replica(static_cast<uint32_t>(size));
    frame.set_token(Pattern(size / 4));
    frame.set_x(Pattern(size));
    v1::GroupRouting& routing = *frame.add_groups();
    routing.set_row(Pattern(size / 2));
    for (int e = 0; e < 100; ++e) routing.add_load(e * 0.1);
  }
  Seal(&request);
  return request;
}

std::string Joined(const Pieces& pieces) {
  std::string all;
  for (const std::string_view piece : pieces.pieces()) all += piece;
  return all;
}

// What came, as if it had been parsed as a whole.
v1::ExchangeRequest Whole(const Received<v1::ExchangeRequest>& received) {
  v1::ExchangeRequest request = received.message;
  for (int f = 0; f < request.forward().frames_size(); ++f) {
    const v1::ForwardFrame& frame = received.message.forward().frames(f);
    request.mutable_forward()->mutable_frames(f)->set_x(
        Joined(received.payloads.Of(frame, frame.x())));
  }
  return request;
}

v1::ExchangeResponse Whole(const Received<v1::ExchangeResponse>& received) {
  v1::ExchangeResponse response = received.message;
  for (int r = 0; r < response.forward().replies_size(); ++r) {
    const v1::GroupOutput& output = received.message.forward().replies(r).groups(0);
    response.mutable_forward()->mutable_replies(r)->mutable_groups(0)->set_y(
        Joined(received.payloads.Of(output, output.y())));
  }
  return response;
}

// In slices of that size.
grpc::ByteBuffer InSlices(const std::string& bytes, size_t size) {
  std::vector<grpc::Slice> slices;
  for (size_t i = 0; i < bytes.size(); i += size) {
    slices.emplace_back(bytes.substr(i, size));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

grpc::ByteBuffer EncodeCopy(const v1::ExchangeRequest& request) {
  return Encode(std::make_shared<const v1::ExchangeRequest>(request));
}

TEST(Encode, GivesTheBytesOfProtobuf) {
  EXPECT_EQ(Joined(EncodeCopy({})), "");
  for (size_t size = 0; size < 10000; size += 97) {
    const v1::ExchangeRequest request = MakeForward({size});
    EXPECT_EQ(Joined(EncodeCopy(request)), request.SerializeAsString()) << size;
  }
  for (int around = -40; around <= 40; ++around) {
    const v1::ExchangeRequest request =
        MakeForward({static_cast<size_t>(kLeastShared + around), 17,
                     static_cast<size_t>(2 * kLeastShared + around), 0});
    EXPECT_EQ(Joined(EncodeCopy(request)), request.SerializeAsString()) << around;
  }
  const v1::ExchangeRequest large = MakeForward({0, 1 << 20, 5, 3 << 20, 4095, 4097});
  EXPECT_EQ(Joined(EncodeCopy(large)), large.SerializeAsString());
}

TEST(Encode, SharesWhatIsLarge) {
  auto request = std::make_shared<const v1::ExchangeRequest>(MakeForward({1 << 20, 64}));
  const auto* const rows =
      reinterpret_cast<const uint8_t*>(request->forward().frames(0).x().data());
  const std::weak_ptr<const v1::ExchangeRequest> message = request;
  grpc::ByteBuffer bytes = Encode(std::move(request));
  {
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(bytes.Dump(&slices).ok());
    EXPECT_TRUE(std::any_of(slices.begin(), slices.end(), [&](const grpc::Slice& slice) {
      return slice.begin() == rows && slice.size() == size_t{1} << 20;
    }));
    EXPECT_FALSE(message.expired());
  }
  bytes.Clear();
  EXPECT_TRUE(message.expired());
}

TEST(Decode, GivesTheMessageWithItsRowsApart) {
  const v1::ExchangeRequest sent =
      MakeForward({0, 1 << 20, 5, kLeastShared, kLeastShared - 1, 4097});
  const std::string bytes = sent.SerializeAsString();
  for (const size_t size : {size_t{1}, size_t{7}, size_t{1000}, bytes.size()}) {
    auto got = DecodeRequest(InSlices(bytes, size));
    ASSERT_TRUE(got.ok()) << got.status();
    const Received<v1::ExchangeRequest> moved = *std::move(got);
    const auto& frames = moved.message.forward().frames();
    for (int f = 0; f < frames.size(); ++f) {
      const bool apart = sent.forward().frames(f).x().size() >= kLeastShared;
      EXPECT_EQ(moved.payloads.Find(frames[f]) != nullptr, apart) << f;
      EXPECT_EQ(frames[f].x().empty(), apart || f == 0) << f;
    }
    EXPECT_EQ(Whole(moved).SerializeAsString(), bytes);
  }
}

TEST(Decode, FindsRowsInEveryKindOfMessage) {
  v1::ExchangeRequest backward;
  backward.mutable_backward()->add_frames()->set_dy(Pattern(1));
  backward.mutable_backward()->add_frames()->set_dy(Pattern(50000));
  Seal(&backward);
  const auto request = DecodeRequest(EncodeCopy(backward));
  ASSERT_TRUE(request.ok()) << request.status();
  const v1::BackwardFrame& frame = request->message.backward().frames(1);
  EXPECT_EQ(Joined(request->payloads.Of(frame, frame.dy())), Pattern(50000));

  v1::ExchangeResponse answer;
  v1::BackwardReply& reply = *answer.mutable_backward()->add_replies();
  reply.add_groups()->set_dx(Pattern(5000));
  reply.add_groups()->set_dgate(Pattern(6000));
  reply.add_groups()->set_dx(Pattern(7000));
  Seal(&answer);
  const auto response =
      DecodeResponse(Encode(std::make_shared<const v1::ExchangeResponse>(answer)));
  ASSERT_TRUE(response.ok()) << response.status();
  const auto& groups = response->message.backward().replies(0).groups();
  EXPECT_EQ(Joined(response->payloads.Of(groups[0], groups[0].dx())), Pattern(5000));
  EXPECT_EQ(groups[1].dgate(), Pattern(6000));
  EXPECT_EQ(Joined(response->payloads.Of(groups[2], groups[2].dx())), Pattern(7000));
}

TEST(Decode, RefusesWhatIsDamaged) {
  const std::string sound = MakeForward({5000, 100}).SerializeAsString();
  ASSERT_TRUE(DecodeRequest(InSlices(sound, 999)).ok());
  EXPECT_EQ(
      DecodeRequest(InSlices(sound.substr(0, sound.size() - 1), 999)).status().code(),
      absl::StatusCode::kDataLoss);
  for (size_t i = 0; i < 8 * sound.size(); ++i) {
    std::string damaged = sound;
    damaged[i / 8] = static_cast<char>(damaged[i / 8] ^ (1 << (i % 8)));
    const auto got = DecodeRequest(InSlices(damaged, 999));
    // What says the same is as good, such as a field twice.
    if (got.ok()) {
      EXPECT_EQ(Whole(*got).SerializeAsString(), sound) << i;
    } else {
      EXPECT_EQ(got.status().code(), absl::StatusCode::kDataLoss) << i;
    }
  }
}

// Answers a forward message with its rows.
v1::ExchangeResponse AnswerTo(const v1::ExchangeRequest& request) {
  v1::ExchangeResponse response;
  response.set_generation(request.generation());
  for (const v1::ForwardFrame& frame : request.forward().frames()) {
    response.mutable_forward()->add_replies()->add_groups()->set_y(frame.x());
  }
  Seal(&response);
  return response;
}

class BytesService final : public ExchangeService {
 public:
  grpc::Status Exchange(grpc::ServerContext*, ExchangeServerStream* stream) override {
    grpc::ByteBuffer bytes;
    while (stream->Read(&bytes)) {
      const auto request = DecodeRequest(bytes);
      EXPECT_TRUE(request.ok()) << request.status();
      stream->Write(Encode(
          std::make_shared<const v1::ExchangeResponse>(AnswerTo(Whole(*request)))));
    }
    return grpc::Status::OK;
  }
};

class GeneratedService final : public v1::ShardService::Service {
 public:
  grpc::Status Exchange(grpc::ServerContext*,
                        grpc::ServerReaderWriter<v1::ExchangeResponse,
                                                 v1::ExchangeRequest>* stream) override {
    v1::ExchangeRequest request;
    while (stream->Read(&request)) stream->Write(AnswerTo(request));
    return grpc::Status::OK;
  }
};

// In each direction one end is generated from the .proto.
TEST(Exchange, TheGeneratedStubSpeaksWithIt) {
  BytesService service;
  grpc::Service* const services[] = {&service};
  const auto server = RpcServer::Start("127.0.0.1:0", services);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto stub = v1::ShardService::NewStub(MakeChannel((*server)->address()));
  grpc::ClientContext context;
  const auto stream = stub->Exchange(&context);
  for (const size_t size : {size_t{0}, size_t{100}, size_t{5} << 20}) {
    const v1::ExchangeRequest request = MakeForward({size, size / 3});
    ASSERT_TRUE(stream->Write(request));
    v1::ExchangeResponse response;
    ASSERT_TRUE(stream->Read(&response));
    EXPECT_EQ(response.SerializeAsString(), AnswerTo(request).SerializeAsString());
  }
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST(Exchange, SpeaksWithTheGeneratedService) {
  GeneratedService service;
  grpc::Service* const services[] = {&service};
  const auto server = RpcServer::Start("127.0.0.1:0", services);
  ASSERT_TRUE(server.ok()) << server.status();
  grpc::ClientContext context;
  const auto stream = StartExchange(MakeChannel((*server)->address()), &context);
  for (const size_t size : {size_t{0}, size_t{100}, size_t{5} << 20}) {
    const v1::ExchangeRequest request = MakeForward({size, size / 3});
    ASSERT_TRUE(stream->Write(EncodeCopy(request)));
    grpc::ByteBuffer bytes;
    ASSERT_TRUE(stream->Read(&bytes));
    const auto response = DecodeResponse(bytes);
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_EQ(Whole(*response).SerializeAsString(),
              AnswerTo(request).SerializeAsString());
  }
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

}  // namespace
}  // namespace moe
