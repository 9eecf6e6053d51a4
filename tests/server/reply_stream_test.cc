#include "server/reply_stream.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "common/net/rpc_server.h"
#include "proto/moe/v1/expert.grpc.pb.h"

namespace moe {
namespace {

constexpr size_t kReplies = 3 * ReplyStream::kMostQueued;

// Answers without being asked, faster than anybody reads.
class Talker final : public v1::ShardService::Service {
 public:
  grpc::Status Exchange(grpc::ServerContext*, ReplyStream::Stream* stream) override {
    ReplyStream replies(stream, [](absl::Duration) {});
    auto response = std::make_shared<v1::ExchangeResponse>();
    response->mutable_failure()->set_message(std::string(4096, 'x'));
    for (size_t i = 0; i < kReplies; ++i) {
      replies.AwaitRoom();
      replies.Send(response);
      longest = std::max(longest.load(), replies.queued());
    }
    replies.Finish();
    return grpc::Status::OK;
  }

  std::atomic<size_t> longest = 0;
};

class ReplyStreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    grpc::Service* const services[] = {&talker_};
    server_ = *RpcServer::Start("127.0.0.1:0", services);
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(50));
    stub_ = v1::ShardService::NewStub(server_->InProcessChannel());
    stream_ = stub_->Exchange(&context_);
    while (talker_.longest < ReplyStream::kMostQueued) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  Talker talker_;
  std::unique_ptr<RpcServer> server_;
  grpc::ClientContext context_;
  std::unique_ptr<v1::ShardService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ExchangeRequest, v1::ExchangeResponse>>
      stream_;
};

TEST_F(ReplyStreamTest, KeepsSoManyForAWorkerThatDoesNotRead) {
  v1::ExchangeResponse response;
  size_t read = 0;
  while (stream_->Read(&response)) ++read;
  EXPECT_EQ(read, kReplies);
  EXPECT_TRUE(stream_->Finish().ok());
  EXPECT_EQ(talker_.longest, ReplyStream::kMostQueued);
}

TEST_F(ReplyStreamTest, ABrokenStreamHasRoom) {
  context_.TryCancel();
  EXPECT_EQ(stream_->Finish().error_code(), grpc::StatusCode::CANCELLED);
  // Returns when the handler has.
  server_->Shutdown(absl::Seconds(50));
  EXPECT_EQ(talker_.longest, ReplyStream::kMostQueued);
}

}  // namespace
}  // namespace moe
