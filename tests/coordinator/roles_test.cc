// Who may say what to a coordinator with TLS.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/protocol.h"
#include "common/net/channel.h"
#include "common/net/tls_credentials.h"
#include "proto/moe/v1/coordinator.grpc.pb.h"
#include "server/coordinator/coordinator.h"
#include "tests/coordinator/small_job.h"
#include "tests/net/certificates.h"

namespace moe {
namespace {

using ::testing::HasSubstr;
using Stub = v1::CoordinatorService::Stub;

class CoordinatorRolesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    certificates_ = MakeCertificates("certificates");
    Coordinator::Options options;
    options.job = SmallJob();
    options.checkpoint_dir = testing::TempDir() + "/checkpoints";
    options.rpc.tls = Load("coordinator", Role::kCoordinator);
    auto coordinator = Coordinator::Start(std::move(options));
    ASSERT_TRUE(coordinator.ok()) << coordinator.status();
    coordinator_ = *std::move(coordinator);
  }

  std::shared_ptr<const TlsCredentials> Load(const std::string& name, Role role) {
    const auto tls = TlsCredentials::Load(FilesOf(certificates_, name), {role});
    EXPECT_TRUE(tls.ok()) << tls.status();
    return *tls;
  }
  std::unique_ptr<Stub> As(Role role) {
    const std::string name(RoleName(role));
    return v1::CoordinatorService::NewStub(
        MakeChannel(coordinator_->address(), Load(name, role), Role::kCoordinator));
  }

  template <typename Request, typename Response>
  static grpc::Status Call(Stub& stub,
                           grpc::Status (Stub::*method)(grpc::ClientContext*,
                                                        const Request&, Response*),
                           const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    Response response;
    return (stub.*method)(&context, request, &response);
  }
  // Of a member that the certificate isn't for.
  template <typename Request, typename Response>
  static void ExpectNotFor(const std::string& member, Stub& stub,
                           grpc::Status (Stub::*method)(grpc::ClientContext*,
                                                        const Request&, Response*),
                           Request request = {}) {
    request.set_member(member);
    const grpc::Status status = Call(stub, method, request);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
    EXPECT_THAT(status.error_message(),
                HasSubstr(absl::StrCat("can't speak for \"", member, "\"")));
  }

  static v1::RegisterRequest Registration(v1::MemberKind kind) {
    v1::RegisterRequest request;
    request.set_kind(kind);
    request.set_name("x");
    request.set_protocol_version(kProtocolVersion + 1);
    return request;
  }

  std::string certificates_;
  std::unique_ptr<Coordinator> coordinator_;
};

TEST_F(CoordinatorRolesTest, MembersSpeakForTheirKind) {
  const auto worker = As(Role::kWorker);
  const auto server = As(Role::kServer);
  for (const auto& [stub, mine, other] :
       {std::tuple(worker.get(), v1::MEMBER_KIND_WORKER, v1::MEMBER_KIND_SERVER),
        std::tuple(server.get(), v1::MEMBER_KIND_SERVER, v1::MEMBER_KIND_WORKER)}) {
    EXPECT_EQ(Call(*stub, &Stub::Register, Registration(other)).error_code(),
              grpc::StatusCode::PERMISSION_DENIED);
    // So far that its version counts.
    const grpc::Status registered = Call(*stub, &Stub::Register, Registration(mine));
    EXPECT_THAT(registered.error_message(), HasSubstr("speaks protocol"));
  }
  ExpectNotFor("server/s0", *worker, &Stub::Heartbeat);
  ExpectNotFor("server/s0", *worker, &Stub::Leave);
  ExpectNotFor("server/s0", *worker, &Stub::FailJob);
  ExpectNotFor("server/s0", *worker, &Stub::ReportStep);
  ExpectNotFor("server/s0", *worker, &Stub::ReportEvaluation);
  ExpectNotFor("server/s0", *worker, &Stub::AwaitCheckpoint);
  ExpectNotFor("server/s0", *worker, &Stub::FinishWork);
  ExpectNotFor("worker/w0", *server, &Stub::Heartbeat);
  ExpectNotFor("worker/w0", *server, &Stub::ReportShardFile);
  ExpectNotFor("", *worker, &Stub::Heartbeat);
  v1::HeartbeatRequest heartbeat;
  heartbeat.set_member("worker/w0");
  // Nobody has that name.
  EXPECT_EQ(Call(*worker, &Stub::Heartbeat, heartbeat).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(CoordinatorRolesTest, OthersCannotJoin) {
  for (const Role role : {Role::kObserver, Role::kOperator, Role::kCoordinator}) {
    const auto stub = As(role);
    const grpc::Status status =
        Call(*stub, &Stub::Register, Registration(v1::MEMBER_KIND_WORKER));
    EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
    EXPECT_THAT(status.error_message(),
                HasSubstr("/moe.v1.CoordinatorService/Register is for the role server or "
                          "worker; "));
    EXPECT_THAT(status.error_message(),
                HasSubstr("has the role " + std::string(RoleName(role))));
  }
}

}  // namespace
}  // namespace moe
