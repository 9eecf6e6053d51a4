#include "common/net/rpc_server.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/net/channel.h"
#include "common/net/grpc_status.h"
#include "common/net/peer_limit.h"
#include "gmock/gmock.h"
#include "proto/moe/v1/coordinator.grpc.pb.h"
#include "tests/net/raw_call.h"

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
    if (held++ == 0) waiting.Notify();
    while (!context->IsCancelled())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return grpc::Status::CANCELLED;
  }

  std::atomic<int> held = 0;
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

class RpcServerTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<RpcServer>> Start(const std::string& listen) {
    grpc::Service* const services[] = {&coordinator_};
    return RpcServer::Start(listen, services);
  }
  absl::StatusOr<std::unique_ptr<RpcServer>> Start(const std::string& listen,
                                                   const RpcServer::Options& options) {
    grpc::Service* const services[] = {&coordinator_};
    return RpcServer::Start(listen, services, options);
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

constexpr char kReflect[] =
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
constexpr char kServers[] = "/grpc.channelz.v1.Channelz/GetServers";

TEST_F(RpcServerTest, HealthOfEachService) {
  RpcServer::Options options;
  options.health_address = "127.0.0.1:0";
  options.health_of = {"moe.v1.CoordinatorService", "moe.v1.OperatorService"};
  const auto server = Start("127.0.0.1:0", options);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto probes = MakeChannel((*server)->health_address());
  for (const auto& channel : {MakeChannel((*server)->address()), probes}) {
    EXPECT_EQ(CheckHealth(channel).value(), kServing);
    for (const std::string& name : options.health_of) {
      EXPECT_EQ(CheckHealth(channel, name).value(), kServing);
    }
    EXPECT_EQ(CheckHealth(channel, "moe.v1.Other").status().code(),
              absl::StatusCode::kNotFound);
    (*server)->SetServing("moe.v1.OperatorService", false);
    EXPECT_EQ(CheckHealth(channel, "moe.v1.OperatorService").value(), kNotServing);
    EXPECT_EQ(CheckHealth(channel).value(), kServing);
    (*server)->SetServing("moe.v1.OperatorService", true);
    EXPECT_EQ(CheckHealth(channel, "moe.v1.OperatorService").value(), kServing);
  }
  // Nothing else is to be had there.
  EXPECT_EQ(Call(probes, "abc").code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(CallRaw(probes, kReflect, std::string("\x3a\x00", 2)).status().code(),
            absl::StatusCode::kUnimplemented);
  (*server)->StopServing();
  (*server)->SetServing("moe.v1.OperatorService", true);
  EXPECT_EQ(CheckHealth(probes).value(), kNotServing);
  EXPECT_EQ(CheckHealth(probes, "moe.v1.OperatorService").value(), kNotServing);
  // Calls go on.
  EXPECT_EQ(Call(MakeChannel((*server)->address()), "abc").message(), "call: 3");
}

TEST_F(RpcServerTest, StopsServingBeforeCallsAreCut) {
  RpcServer::Options options;
  options.health_address = "127.0.0.1:0";
  const auto server = Start("127.0.0.1:0", options);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto probes = MakeChannel((*server)->health_address());
  grpc::ClientContext context;
  std::thread caller([&] {
    v1::FailJobRequest request;
    request.set_cause("wait");
    v1::FailJobResponse response;
    (void)v1::CoordinatorService::NewStub(MakeChannel((*server)->address()))
        ->FailJob(&context, request, &response);
  });
  coordinator_.waiting.WaitForNotification();
  std::thread stopper([&] { (*server)->Shutdown(absl::Seconds(60)); });
  while (CheckHealth(probes).value() == kServing) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  // The call still runs, with a minute to end.
  EXPECT_EQ(CheckHealth(probes).value(), kNotServing);
  context.TryCancel();
  caller.join();
  stopper.join();
}

TEST_F(RpcServerTest, ReflectionAndChannelzByOption) {
  const std::string list("\x3a\x00", 2);  // list_services: ""
  RpcServer::Options options;
  const auto plain = Start("127.0.0.1:0", options);
  options.reflection = true;
  options.channelz = true;
  const auto open = Start("127.0.0.1:0", options);
  ASSERT_TRUE(plain.ok() && open.ok());
  const auto services = CallRaw(MakeChannel((*open)->address()), kReflect, list);
  ASSERT_TRUE(services.ok()) << services.status();
  EXPECT_THAT(*services, HasSubstr("moe.v1.CoordinatorService"));
  EXPECT_TRUE(CallRaw(MakeChannel((*open)->address()), kServers, "").ok());
  const auto channel = MakeChannel((*plain)->address());
  EXPECT_EQ(CallRaw(channel, kReflect, list).status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(CallRaw(channel, kServers, "").status().code(),
            absl::StatusCode::kUnimplemented);
}

TEST_F(RpcServerTest, PlaintextStaysOnThisMachine) {
  for (const std::string listen : {"0.0.0.0:0", "[::]:0"}) {
    const absl::Status refused = Start(listen).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr(listen));
    EXPECT_THAT(std::string(refused.message()),
                HasSubstr("--tls_ca, --tls_cert and --tls_key"));
    EXPECT_THAT(std::string(refused.message()), HasSubstr("--insecure"));
  }
  RpcServer::Options options;
  options.insecure = true;
  EXPECT_TRUE(Start("0.0.0.0:0", options).ok());
  EXPECT_TRUE(Start("localhost:0").ok());
  EXPECT_TRUE(Start("127.1.2.3:0").ok());
}

TEST_F(RpcServerTest, MoreCallsOnAConnectionWait) {
  const auto server = Start("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  const auto channel = MakeChannel((*server)->address());
  // As many as a connection may have (rpc_server.cc).
  constexpr int kStreams = 100;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::thread> callers;
  const auto stub = v1::CoordinatorService::NewStub(channel);
  for (int i = 0; i < kStreams; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    callers.emplace_back([&stub, context = contexts.back().get()] {
      v1::FailJobRequest request;
      request.set_cause("wait");
      v1::FailJobResponse response;
      (void)stub->FailJob(context, request, &response);
    });
  }
  while (coordinator_.held < kStreams) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const auto quick = [&](const std::shared_ptr<grpc::Channel>& on) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(1));
    v1::FailJobRequest request;
    v1::FailJobResponse response;
    return v1::CoordinatorService::NewStub(on)->FailJob(&context, request, &response);
  };
  EXPECT_EQ(quick(channel).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(quick(MakeChannel((*server)->address())).error_code(),
            grpc::StatusCode::ABORTED);
  for (const auto& context : contexts) context->TryCancel();
  for (std::thread& caller : callers) caller.join();
}

TEST_F(RpcServerTest, APeerThatPingsTooOftenIsCutOff) {
  const auto server = Start("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 100);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  const auto channel = grpc::CreateCustomChannel(
      (*server)->address(), grpc::InsecureChannelCredentials(), arguments);
  const absl::Status cut = Call(channel, "wait");
  EXPECT_EQ(cut.code(), absl::StatusCode::kUnavailable) << cut;
  EXPECT_THAT(std::string(cut.message()), HasSubstr("Too many pings"));
}

TEST_F(RpcServerTest, ASilentConnectionIsClosed) {
  const auto server = Start("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string& address = (*server)->address();
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  to.sin_port = htons(std::stoi(address.substr(address.rfind(':') + 1)));
  ASSERT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
  const timeval patience = {.tv_sec = 40, .tv_usec = 0};
  ASSERT_EQ(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
  // The server's own greeting, then its end.
  char bytes[1024];
  ssize_t received = 0;
  while ((received = recv(fd, bytes, sizeof(bytes), 0)) > 0) {
  }
  EXPECT_FALSE(received < 0 && errno == EAGAIN) << "the server still listens to it";
  close(fd);
}

TEST_F(RpcServerTest, LargeMetadataIsRefused) {
  const auto server = Start("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  grpc::ClientContext context;
  context.set_deadline(InSeconds(30));
  context.AddMetadata("large", std::string(20 << 10, 'x'));
  v1::FailJobResponse response;
  EXPECT_EQ(v1::CoordinatorService::NewStub(MakeChannel((*server)->address()))
                ->FailJob(&context, {}, &response)
                .error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
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

TEST_F(RpcServerTest, AHostHasItsShareOfCalls) {
  RpcServer::Options options;
  options.calls_of_host = 3;
  const auto server = Start("127.0.0.1:0", options);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto stub = v1::CoordinatorService::NewStub(MakeChannel((*server)->address()));
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::thread> holders;
  for (int i = 0; i < 3; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    holders.emplace_back([&stub, context = contexts.back().get()] {
      v1::FailJobRequest request;
      request.set_cause("wait");
      v1::FailJobResponse response;
      EXPECT_FALSE(stub->FailJob(context, request, &response).ok());
    });
  }
  while (coordinator_.held < 3) std::this_thread::yield();
  const auto same_host = [&] { return Call(MakeChannel((*server)->address()), "x"); };
  EXPECT_TRUE(absl::IsCancelled(same_host())) << same_host();
  // To gRPC this is another one.
  EXPECT_TRUE(absl::IsAborted(Call((*server)->InProcessChannel(), "x")));
  contexts[0]->TryCancel();
  holders[0].join();
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (absl::IsCancelled(same_host()) && absl::Now() < deadline)
    std::this_thread::yield();
  EXPECT_TRUE(absl::IsAborted(same_host())) << same_host();
  for (int i = 1; i < 3; ++i) {
    contexts[i]->TryCancel();
    holders[i].join();
  }
}

TEST(PeerLimitTest, Hosts) {
  EXPECT_EQ(HostOf("ipv4:10.0.0.1:4000"), "ipv4:10.0.0.1");
  EXPECT_EQ(HostOf("ipv6:%5B::1%5D:4000"), "ipv6:%5B::1%5D");
  EXPECT_EQ(HostOf("unix:/run/socket"), "unix:/run/socket");
  EXPECT_EQ(HostOf("inproc"), "inproc");
}

}  // namespace
}  // namespace moe
