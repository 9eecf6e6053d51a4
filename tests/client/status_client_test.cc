#include "client/status_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>

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

// Server `id` with these tensors, by number.
class FakeShards final : public v1::ServerStatusService::Service {
 public:
  FakeShards(std::string id, std::map<uint64_t, std::string> tensors)
      : id_(std::move(id)), tensors_(std::move(tensors)) {
    grpc::Service* const services[] = {this};
    auto server = RpcServer::Start("127.0.0.1:0", services);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  grpc::Status GetTensorDigests(grpc::ServerContext*, const v1::GetTensorDigestsRequest*,
                                v1::GetTensorDigestsResponse* response) override {
    response->set_version(5);
    for (const auto& [tensor, sha256] : tensors_) {
      v1::TensorDigest& digest = *response->add_tensors();
      digest.set_tensor(tensor);
      digest.set_name(absl::StrCat("tensor", tensor));
      digest.set_sha256(sha256);
    }
    v1::UntouchedTensors& untouched = *response->add_untouched();
    untouched.set_first(2);
    untouched.set_count(1);
    return grpc::Status::OK;
  }
  // Gives the server a first copy in the state.
  void AddTo(v1::ClusterState* state) const {
    v1::ServerAddress& address = *state->add_servers();
    address.set_server(id_);
    address.set_address(server_->address());
    state->mutable_placement()->add_shards()->set_server(id_);
  }

 private:
  const std::string id_;
  const std::map<uint64_t, std::string> tensors_;
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

TEST(StatusClientTest, CopiesCountOnceInADigest) {
  const StatusClient client(absl::Seconds(20));
  const std::string a(64, 'a');
  const std::string b(64, 'b');
  const std::string c(64, 'c');
  const FakeShards first("server/s0", {{0, a}, {1, b}});
  const FakeShards second("server/s1", {{0, a}, {1, b}});
  v1::ClusterState single;
  first.AddTo(&single);
  const auto expected = GetLiveDigest(client, single, 1);
  ASSERT_TRUE(expected.ok()) << expected.status();
  v1::ClusterState both = single;
  second.AddTo(&both);
  const auto digest = GetLiveDigest(client, both, 1);
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(digest->digest, expected->digest);
  EXPECT_EQ(digest->tensors.size(), 2u);
  // Those that only have second copies are asked, too.
  both.mutable_placement()->mutable_shards(1)->set_server("server/s0");
  both.mutable_placement()->mutable_shards(1)->set_standby("server/s1");
  EXPECT_TRUE(GetLiveDigest(client, both, 1).ok());

  const FakeShards other("server/s2", {{0, a}, {1, c}});
  other.AddTo(&both);
  const auto differs = GetLiveDigest(client, both, 1);
  EXPECT_EQ(differs.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(differs.status().message()),
              HasSubstr("the copies of tensor1 differ: server/s0 has one with"));
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
