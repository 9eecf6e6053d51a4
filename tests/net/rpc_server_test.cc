#include "common/net/rpc_server.h"

#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/net/channel.h"
#include "common/net/grpc_status.h"
#include "gmock/gmock.h"
#include "proto/moe/v1/coordinator.grpc.pb.h"

namespace moe {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

std::chrono::system_clock::time_point InSeconds(int seconds) {
  return std::chrono::system_clock::now() + std::chrono::seconds(seconds);
}

class FakeCoordinator : public v1::CoordinatorService::Service {
 public:
  // Answers with the length of the cause, or waits until it is cancelled.
  grpc::Status FailJob(grpc::ServerContext* context, const v1::FailJobRequest* request,
                       v1::FailJobResponse*) override {
    if (request->cause() != "wait") {
      return ToGrpcStatus(absl::AbortedError(absl::StrCat(request->cause().size())));
    }
    waiting.Notify();
    while (!context->IsCancelled())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return grpc::Status::CANCELLED;
  }

  absl::Notification waiting;
};

absl::Status Call(const std::shared_ptr<grpc::Channel>& channel, const std::string& cause,
                  bool wait_for_ready = false) {
  grpc::ClientContext context;
  context.set_deadline(InSeconds(30));
  context.set_wait_for_ready(wait_for_ready);
  v1::FailJobRequest request;
  request.set_cause(cause);
  v1::FailJobResponse response;
  return FromGrpcStatus(
      v1::CoordinatorService::NewStub(channel)->FailJob(&context, request, &response),
      "call");
}

// One message to a method of a service whose protos aren't installed, and one back.
absl::StatusOr<std::string> CallRaw(const std::shared_ptr<grpc::Channel>& channel,
                                    const std::string& method, const std::string& bytes) {
  grpc::ClientContext context;
  context.set_deadline(InSeconds(30));
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  absl::Notification done;
  grpc::Status status;
  grpc::GenericStub stub(channel);
  stub.UnaryCall(&context, method, grpc::StubOptions(), &request, &response,
                 [&](grpc::Status result) {
                   status = std::move(result);
                   done.Notify();
                 });
  done.WaitForNotification();
  if (!status.ok()) return FromGrpcStatus(status, method);
  grpc::Slice all;
  EXPECT_TRUE(response.DumpToSingleSlice(&all).ok());
  return std::string(reinterpret_cast<const char*>(all.begin()), all.size());
}

class RpcServerTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<RpcServer>> Start(const std::string& listen) {
    grpc::Service* const services[] = {&coordinator_};
    return RpcServer::Start(listen, services);
  }
  std::string Error(const std::string& listen) {
    return std::string(Start(listen).status().message());
  }

  FakeCoordinator coordinator_;
};

TEST_F(RpcServerTest, ServesOnAnyPort) {
  const auto server = Start("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_THAT((*server)->address(),
              ::testing::MatchesRegex("127\\.0\\.0\\.1:[1-9][0-9]*"));
  EXPECT_EQ(Call(MakeChannel((*server)->address()), "abc").message(), "call: 3");
  EXPECT_EQ(Call((*server)->InProcessChannel(), "abcd").message(), "call: 4");
}

TEST_F(RpcServerTest, LargeMessagesPass) {
  const auto server = Start("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string large(20 << 20, 'x');  // gRPC's own limit is 4 MiB
  EXPECT_EQ(Call(MakeChannel((*server)->address()), large).code(),
            absl::StatusCode::kAborted);
  EXPECT_EQ(Call((*server)->InProcessChannel(), large).code(),
            absl::StatusCode::kAborted);
}

TEST_F(RpcServerTest, HealthAndReflection) {
  const auto server = Start("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  const auto channel = MakeChannel((*server)->address());
  const auto health = CallRaw(channel, "/grpc.health.v1.Health/Check", "");
  ASSERT_TRUE(health.ok()) << health.status();
  EXPECT_EQ(*health, "\x08\x01");  // status: SERVING
  const std::string name = "moe.v1.CoordinatorService";
  (*server)->SetServing(name, false);
  const auto of_service = CallRaw(channel, "/grpc.health.v1.Health/Check",
                                  "\x0a" + std::string(1, name.size()) + name);
  ASSERT_TRUE(of_service.ok()) << of_service.status();
  EXPECT_EQ(*of_service, "\x08\x02");  // status: NOT_SERVING
  // list_services: ""
  const auto services =
      CallRaw(channel, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
              std::string("\x3a\x00", 2));
  ASSERT_TRUE(services.ok()) << services.status();
  EXPECT_THAT(*services, HasSubstr("moe.v1.CoordinatorService"));
}

TEST_F(RpcServerTest, TakenPortIsAClearError) {
  const auto first = Start("127.0.0.1:0");
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string& address = (*first)->address();
  const absl::Status second = Start(address).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.message()), HasSubstr(address));
  // Also where another of the host's addresses would be free.
  const std::string localhost = "localhost:" + address.substr(address.rfind(':') + 1);
  EXPECT_EQ(Start(localhost).status().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(RpcServerTest, BadAddressesAreClearErrors) {
  for (const std::string listen :
       {"", "localhost", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:-1",
        "127.0.0.1:65536", ":1", "::1:80", "no such host:80", "192.0.2.1:0", "unix:"}) {
    const absl::Status status = Start(listen).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("\"" + listen + "\""));
  }
  EXPECT_THAT(Error("unix:" + std::string(200, 'x')), HasSubstr("longer than 107"));
  EXPECT_THAT(Error("unix:/no/such/folder/socket"),
              HasSubstr("no folder /no/such/folder"));
  EXPECT_THAT(Error("unix:/etc/passwd"), HasSubstr("isn't a socket"));
}

TEST_F(RpcServerTest, UnixSockets) {
  const std::string path = absl::StrCat("/tmp/rpc_server_test-", getpid());
  const std::string address = "unix:" + path;
  for (int round = 0; round < 2; ++round) {  // the second finds whatever the first left
    const auto server = Start(address);
    ASSERT_TRUE(server.ok()) << server.status();
    EXPECT_EQ((*server)->address(), address);
    EXPECT_EQ(Start(address).status().code(), absl::StatusCode::kAlreadyExists);
    EXPECT_EQ(Call(MakeChannel(address), "abc").message(), "call: 3");
  }
  std::filesystem::remove(path);
}

TEST_F(RpcServerTest, ShutdownCancelsWhatStillRuns) {
  const auto server = Start("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  absl::Status status;
  std::thread caller([&] { status = Call(MakeChannel((*server)->address()), "wait"); });
  coordinator_.waiting.WaitForNotification();
  (*server)->Shutdown(absl::ZeroDuration());
  (*server)->Shutdown(absl::ZeroDuration());
  caller.join();
  EXPECT_THAT(status.code(),
              AnyOf(absl::StatusCode::kCancelled, absl::StatusCode::kUnavailable));
}

TEST_F(RpcServerTest, ChannelFindsAServerThatCameBack) {
  auto server = Start("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string address = (*server)->address();
  const auto channel = MakeChannel(address);
  EXPECT_EQ(Call(channel, "a").code(), absl::StatusCode::kAborted);
  server->reset();
  EXPECT_EQ(Call(channel, "a").code(), absl::StatusCode::kUnavailable);
  server = Start(address);
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ(Call(channel, "a", /*wait_for_ready=*/true).code(),
            absl::StatusCode::kAborted);
}

}  // namespace
}  // namespace moe
