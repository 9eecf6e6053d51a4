#include "common/net/tls_credentials.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/net/channel.h"
#include "common/net/connection_check.h"
#include "common/net/grpc_status.h"
#include "common/net/rpc_server.h"
#include "gmock/gmock.h"
#include "proto/moe/v1/operator.grpc.pb.h"
#include "proto/moe/v1/status.grpc.pb.h"
#include "tests/net/certificates.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Tls = std::shared_ptr<const TlsCredentials>;

class Status final : public v1::ClusterStatusService::Service {
 public:
  grpc::Status GetClusterStatus(grpc::ServerContext*, const v1::GetClusterStatusRequest*,
                                v1::GetClusterStatusResponse*) override {
    return grpc::Status::OK;
  }
};

class Operator final : public v1::OperatorService::Service {
 public:
  grpc::Status Scale(grpc::ServerContext*, const v1::ScaleRequest*,
                     v1::ScaleResponse*) override {
    return grpc::Status::OK;
  }
};

constexpr RoleSet kAny = {Role::kCoordinator, Role::kServer, Role::kWorker,
                          Role::kOperator, Role::kObserver};

class TlsCredentialsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    certificates_ = MakeCertificates("certificates");
    stranger_ = MakeCertificates("stranger");
    // Of the same authority, but of the past.
    std::filesystem::create_directories(::testing::TempDir() + "/expired");
    for (const char* file : {"/ca.crt", "/ca.key"}) {
      std::filesystem::copy_file(certificates_ + file,
                                 ::testing::TempDir() + "/expired" + file);
    }
    expired_ = MakeCertificates("expired", "--from '3 days ago' --until '2 days ago'");
  }

  static std::string ErrorOf(const TlsFiles& files, RoleSet own = kAny) {
    return std::string(TlsCredentials::Load(files, own).status().message());
  }
  static Tls Load(const std::string& folder, const std::string& name) {
    const auto tls = TlsCredentials::Load(FilesOf(folder, name), kAny);
    EXPECT_TRUE(tls.ok()) << tls.status();
    return *tls;
  }

  std::unique_ptr<RpcServer> StartServer(Tls tls,
                                         const std::string& listen = "127.0.0.1:0") {
    grpc::Service* const services[] = {&status_, &operator_};
    RpcServer::Options options;
    options.tls = std::move(tls);
    auto server = RpcServer::Start(listen, services, options);
    EXPECT_TRUE(server.ok()) << server.status();
    return *std::move(server);
  }

  static absl::Status Ask(const std::string& address, const Tls& tls,
                          Role peer = Role::kCoordinator) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::GetClusterStatusResponse response;
    return FromGrpcStatus(
        v1::ClusterStatusService::NewStub(MakeChannel(address, tls, peer))
            ->GetClusterStatus(&context, {}, &response),
        "call");
  }
  static absl::Status Scale(const std::string& address, const Tls& tls) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::ScaleResponse response;
    return FromGrpcStatus(
        v1::OperatorService::NewStub(MakeChannel(address, tls, Role::kCoordinator))
            ->Scale(&context, {}, &response),
        "call");
  }
  // Neither gRPC nor the check gets through; what the check says.
  static std::string Refusal(const std::string& address, const Tls& tls,
                             Role peer = Role::kCoordinator) {
    EXPECT_EQ(Ask(address, tls, peer).code(), absl::StatusCode::kUnavailable);
    const absl::Time start = absl::Now();
    const absl::Status checked = CheckConnection(address, tls, peer);
    EXPECT_EQ(checked.code(), absl::StatusCode::kUnauthenticated);
    EXPECT_LT(absl::Now() - start, absl::Seconds(10));
    return std::string(checked.message());
  }

  static std::string certificates_;
  static std::string stranger_;
  static std::string expired_;
  Status status_;
  Operator operator_;
};

std::string TlsCredentialsTest::certificates_;
std::string TlsCredentialsTest::stranger_;
std::string TlsCredentialsTest::expired_;

TEST_F(TlsCredentialsTest, Files) {
  EXPECT_EQ(*TlsCredentials::Load({}, kAny), nullptr);
  const TlsFiles good = FilesOf(certificates_, "worker");
  EXPECT_NE(*TlsCredentials::Load(good, {Role::kWorker}), nullptr);

  TlsFiles files = {.certificate = good.certificate};
  EXPECT_EQ(ErrorOf(files),
            "--tls_cert without --tls_ca and --tls_key: TLS needs all three");
  files = good;
  files.key = "";
  EXPECT_EQ(ErrorOf(files),
            "--tls_ca and --tls_cert without --tls_key: TLS needs all three");
  files = good;
  files.key = certificates_ + "/nowhere.key";
  EXPECT_THAT(ErrorOf(files), AllOf(HasSubstr("--tls_key: "), HasSubstr("nowhere.key"),
                                    HasSubstr("No such file")));
  files = good;
  files.key = certificates_ + "/server.key";
  EXPECT_THAT(ErrorOf(files), AllOf(HasSubstr("server.key"), HasSubstr("worker.crt"),
                                    HasSubstr("isn't the key of the certificate")));
  files = good;
  files.key = good.certificate;
  EXPECT_THAT(ErrorOf(files), HasSubstr("holds no PEM private key"));
  files = good;
  files.certificate = good.key;
  EXPECT_THAT(ErrorOf(files), AllOf(HasSubstr("--tls_cert: "), HasSubstr("worker.key"),
                                    HasSubstr("holds no PEM certificate")));
  files = good;
  files.ca = ::testing::TempDir() + "/damaged.crt";
  std::ofstream(files.ca) << "-----BEGIN CERTIFICATE-----\nMIIB\n"
                             "-----END CERTIFICATE-----\n";
  EXPECT_THAT(ErrorOf(files), AllOf(HasSubstr("--tls_ca: "), HasSubstr("is damaged")));
  EXPECT_THAT(ErrorOf(FilesOf(expired_, "worker")),
              AllOf(HasSubstr("worker.crt: expired on 20"), HasSubstr(" UTC")));
  const std::string later = MakeCertificates("later", "--from '1 day' --role worker");
  EXPECT_THAT(ErrorOf({.ca = good.ca,
                       .certificate = later + "/worker.crt",
                       .key = later + "/worker.key"}),
              HasSubstr("worker.crt: isn't valid before 20"));
  EXPECT_THAT(ErrorOf(good, {Role::kServer}),
              AllOf(HasSubstr("worker.crt isn't for this program"),
                    HasSubstr("it has the role worker instead of server")));
}

TEST_F(TlsCredentialsTest, ServesThoseWithARole) {
  // Paths of sockets are short.
  const std::string socket = absl::StrCat("/tmp/tls_credentials_test-", getpid());
  for (const std::string& listen :
       {std::string("127.0.0.1:0"), std::string("localhost:0"), "unix:" + socket}) {
    const auto server = StartServer(Load(certificates_, "coordinator"), listen);
    const std::string address = server->address();
    EXPECT_TRUE(Ask(address, Load(certificates_, "operator")).ok());
    EXPECT_TRUE(Ask(address, Load(certificates_, "observer")).ok());
    EXPECT_TRUE(Scale(address, Load(certificates_, "operator")).ok());
    EXPECT_EQ(Scale(address, Load(certificates_, "observer")).message(),
              "call: /moe.v1.OperatorService/Scale is for the role operator; the "
              "certificate of CN=observer,O=Switchyard has the role observer");
    const absl::Status worker = Ask(address, Load(certificates_, "worker"));
    EXPECT_EQ(worker.code(), absl::StatusCode::kPermissionDenied) << worker;
    EXPECT_TRUE(
        CheckConnection(address, Load(certificates_, "worker"), Role::kCoordinator).ok());
  }
  std::filesystem::remove(socket);
}

TEST_F(TlsCredentialsTest, WhoIsRefusedAndWhy) {
  const auto server = StartServer(Load(certificates_, "coordinator"));
  const std::string address = server->address();
  EXPECT_THAT(Refusal(address, Load(stranger_, "operator")),
              HasSubstr("certificate of " + address + " was refused: "));
  EXPECT_THAT(Refusal(address, Load(certificates_, "operator"), Role::kServer),
              AllOf(HasSubstr("certificate of " + address +
                              " was refused: it has the role "
                              "coordinator instead of server"),
                    HasSubstr("CN = coordinator")));
  EXPECT_EQ(Refusal(address, nullptr),
            address +
                " speaks TLS and this process doesn't: give it --tls_ca, --tls_cert "
                "and --tls_key");
  // It trusts the server, but not the other way round.
  const auto half = TlsCredentials::Load({.ca = certificates_ + "/ca.crt",
                                          .certificate = stranger_ + "/operator.crt",
                                          .key = stranger_ + "/operator.key"},
                                         kAny);
  EXPECT_THAT(Refusal(address, *half),
              AllOf(HasSubstr(address + " refused the certificate " + stranger_ +
                              "/operator.crt: "),
                    HasSubstr("CN = operator, valid until ")));
}

TEST_F(TlsCredentialsTest, AnotherHostsCertificate) {
  const std::string folder =
      MakeCertificates("other_host", "--host elsewhere.example --host 192.0.2.7");
  const auto server = StartServer(Load(folder, "coordinator"));
  EXPECT_THAT(Refusal(server->address(), Load(folder, "operator")),
              HasSubstr("it is for elsewhere.example, 192.0.2.7, not for 127.0.0.1"));
}

TEST_F(TlsCredentialsTest, PlaintextServer) {
  const auto server = StartServer(nullptr);
  const std::string address = server->address();
  EXPECT_THAT(Refusal(address, Load(certificates_, "operator")),
              HasSubstr(address + " doesn't speak TLS as this process does"));
  EXPECT_TRUE(CheckConnection(address, nullptr, Role::kCoordinator).ok());
}

// Whatever it does the process lives.
TEST_F(TlsCredentialsTest, PeersThatHangUp) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in here = {};
  here.sin_family = AF_INET;
  here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(here);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&here), size), 0);
  ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&here), &size), 0);
  ASSERT_EQ(listen(listener, 16), 0);
  const std::string address = absl::StrCat("127.0.0.1:", ntohs(here.sin_port));
  std::thread peer([&] {
    // At once, and with a reset.
    for (int i = 0; i < 20; ++i) {
      const int fd = accept(listener, nullptr, nullptr);
      const linger reset = {.l_onoff = 1, .l_linger = 0};
      if (i % 2 == 1) setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
      close(fd);
    }
  });
  for (int i = 0; i < 10; ++i) {
    EXPECT_TRUE(CheckConnection(address, nullptr, Role::kServer).ok());
    (void)CheckConnection(address, Load(certificates_, "worker"), Role::kServer);
  }
  peer.join();
  close(listener);
}

TEST_F(TlsCredentialsTest, NobodyThere) {
  EXPECT_TRUE(CheckConnection("127.0.0.1:1", nullptr, Role::kServer).ok());
  EXPECT_TRUE(
      CheckConnection("127.0.0.1:1", Load(certificates_, "worker"), Role::kServer).ok());
  EXPECT_TRUE(CheckConnection("unix:/nowhere", nullptr, Role::kServer).ok());
  EXPECT_TRUE(CheckConnection("no such host:1", nullptr, Role::kServer).ok());
}

TEST_F(TlsCredentialsTest, FilesAreReadAgain) {
  const std::string folder = MakeCertificates("replaced");
  const Tls server_tls = Load(folder, "coordinator");
  const Tls client_tls = Load(folder, "operator");
  const auto server = StartServer(server_tls);
  EXPECT_TRUE(Ask(server->address(), client_tls).ok());
  // Another authority, and expired certificates in the place of valid ones.
  for (const auto& [from, works] : {std::pair(stranger_, true), {expired_, false}}) {
    for (const char* file : {"ca.crt", "coordinator.key", "coordinator.crt",
                             "operator.key", "operator.crt"}) {
      std::filesystem::copy_file(from + "/" + file, folder + "/" + file,
                                 std::filesystem::copy_options::overwrite_existing);
    }
    const Tls fresh = works ? Load(from, "operator") : Load(certificates_, "operator");
    const absl::Time deadline = absl::Now() + absl::Seconds(30);
    while (Ask(server->address(), fresh).ok() != works && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(100));
    }
    EXPECT_EQ(Ask(server->address(), fresh).ok(), works);
    while (Ask(server->address(), client_tls).ok() != works && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(100));
    }
    EXPECT_EQ(Ask(server->address(), client_tls).ok(), works);
  }
  EXPECT_THAT(Refusal(server->address(), Load(certificates_, "operator")),
              HasSubstr("certificate of " + server->address() +
                        " was refused: certificate has expired"));
}

}  // namespace
}  // namespace moe
