#include "client/status_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/net/rpc_server.h"
#include "proto/moe/v1/status.grpc.pb.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kNobody[] = "127.0.0.1:1";

class FakeStatus final : public v1::ClusterStatusService::Service {
 public:
  // What it answers with.
  explicit FakeStatus(grpc::Status status) : status_(std::move(status)) {
    grpc::Service* const services[] = {this};
    auto server = RpcServer::Start("127.0.0.1:0", services);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  grpc::Status GetClusterStatus(grpc::ServerContext*, const v1::GetClusterStatusRequest*,
                                v1::GetClusterStatusResponse*) override {
    return status_;
  }
  const std::string& address() const { return server_->address(); }

 private:
  const grpc::Status status_;
  std::unique_ptr<RpcServer> server_;
};

const grpc::Status kStandby(grpc::StatusCode::UNAVAILABLE, "standby; the leader is b:1");

TEST(StatusClientTest, AsksTheNextWhereOneIsUnavailable) {
  const StatusClient client(absl::Seconds(20));
  const FakeStatus standby(kStandby);
  const FakeStatus leader(grpc::Status::OK);
  const auto status = client.GetClusterStatus(
      absl::StrCat(kNobody, ",", standby.address(), ",", leader.address()));
  EXPECT_TRUE(status.ok()) << status.status();
}

TEST(StatusClientTest, SaysWhyOfEach) {
  const StatusClient client(absl::Seconds(20));
  const FakeStatus standby(kStandby);
  const absl::Status status =
      client.GetClusterStatus(absl::StrCat(kNobody, ",", standby.address())).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(absl::StrCat("can't reach the coordinator at ", kNobody)),
                    HasSubstr(absl::StrCat("at ", standby.address(), ": standby;"))));
}

TEST(StatusClientTest, ARefusalIsAnAnswer) {
  const StatusClient client(absl::Seconds(20));
  const FakeStatus refuses({grpc::StatusCode::PERMISSION_DENIED, "not you"});
  const FakeStatus leader(grpc::Status::OK);
  const absl::Status status =
      client.GetClusterStatus(absl::StrCat(refuses.address(), ",", leader.address()))
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
}

}  // namespace
}  // namespace moe
