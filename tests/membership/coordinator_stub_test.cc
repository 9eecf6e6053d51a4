#include "common/membership/coordinator_stub.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/net/rpc_server.h"
#include "common/net/tls_credentials.h"
#include "proto/moe/v1/coordinator.grpc.pb.h"
#include "tests/net/certificates.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kNobody[] = "127.0.0.1:1";

// Answers the name of a coordinator.
class NamedCoordinator final : public v1::CoordinatorService::Service {
 public:
  explicit NamedCoordinator(const std::string& name,
                            std::shared_ptr<const TlsCredentials> tls = nullptr)
      : name_(name) {
    RpcServer::Options options;
    options.tls = std::move(tls);
    grpc::Service* const services[] = {this};
    auto server = RpcServer::Start("127.0.0.1:0", services, options);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  grpc::Status FailJob(grpc::ServerContext*, const v1::FailJobRequest*,
                       v1::FailJobResponse* response) override {
    if (name_ == "standby") return {grpc::StatusCode::UNAVAILABLE, "standby"};
    response->set_failure(name_);
    return grpc::Status::OK;
  }
  const std::string& address() const { return server_->address(); }

 private:
  const std::string name_;
  std::unique_ptr<RpcServer> server_;
};

// Who answers; else the code.
std::string Ask(CoordinatorStub& stub) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  v1::FailJobResponse response;
  const auto asked = stub.get();
  const grpc::Status status = asked->FailJob(&context, {}, &response);
  stub.NoteAnswer(asked, status);
  return status.ok() ? response.failure() : absl::StrCat(status.error_code());
}

std::shared_ptr<const TlsCredentials> Load(const std::string& folder,
                                           const std::string& name) {
  const auto tls =
      TlsCredentials::Load(FilesOf(folder, name), {Role::kCoordinator, Role::kWorker});
  EXPECT_TRUE(tls.ok()) << tls.status();
  return *tls;
}

TEST(CoordinatorStubTest, FindsTheOneThatLeads) {
  const NamedCoordinator standby("standby");
  const NamedCoordinator leader("leader");
  CoordinatorStub stub(
      absl::StrCat(kNobody, ",", standby.address(), ",", leader.address()), nullptr);
  const std::string unavailable = absl::StrCat(grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Ask(stub), unavailable);
  EXPECT_EQ(Ask(stub), unavailable);
  EXPECT_EQ(Ask(stub), "leader");
  EXPECT_EQ(Ask(stub), "leader");
}

TEST(CoordinatorStubTest, MovesOnOnceForCallsThatFailTogether) {
  const NamedCoordinator leader("leader");
  CoordinatorStub stub(absl::StrCat(kNobody, ",", leader.address()), nullptr);
  const auto first = stub.get();
  const grpc::Status unavailable(grpc::StatusCode::UNAVAILABLE, "");
  EXPECT_FALSE(stub.NoteAnswer(first, grpc::Status(grpc::StatusCode::ABORTED, "")));
  EXPECT_EQ(stub.get(), first);
  EXPECT_TRUE(stub.NoteAnswer(first, unavailable));
  EXPECT_FALSE(stub.NoteAnswer(first, unavailable));
  EXPECT_NE(stub.get(), first);
  EXPECT_EQ(Ask(stub), "leader");
}

TEST(CoordinatorStubTest, ByTls) {
  const std::string folder = MakeCertificates("certificates");
  const std::string stranger = MakeCertificates("stranger");
  const NamedCoordinator strange("strange", Load(stranger, "coordinator"));
  const NamedCoordinator worker("worker", Load(folder, "worker"));
  const NamedCoordinator leader("leader", Load(folder, "coordinator"));
  const auto tls = Load(folder, "worker");

  CoordinatorStub none(absl::StrCat(strange.address(), ",", worker.address()), tls);
  EXPECT_EQ(Ask(none), absl::StrCat(grpc::StatusCode::UNAVAILABLE));
  const absl::Status refusal = none.CheckConnections();
  EXPECT_EQ(refusal.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(std::string(refusal.message()),
              AllOf(HasSubstr(strange.address()), HasSubstr(worker.address())));

  CoordinatorStub one(
      absl::StrCat(strange.address(), ",", worker.address(), ",", leader.address()), tls);
  EXPECT_TRUE(one.CheckConnections().ok()) << one.CheckConnections();
  EXPECT_NE(Ask(one), "strange");
  EXPECT_NE(Ask(one), "worker") << "that isn't a coordinator";
  EXPECT_EQ(Ask(one), "leader");
  CoordinatorStub away(absl::StrCat(strange.address(), ",", kNobody), tls);
  EXPECT_TRUE(away.CheckConnections().ok()) << "it may come";
}

}  // namespace
}  // namespace moe
