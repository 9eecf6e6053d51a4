// A coordinator that cuts calls short, as one does that stops.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <utility>

#include "absl/time/time.h"
#include "common/membership/member.h"
#include "common/net/rpc_server.h"
#include "proto/moe/v1/coordinator.grpc.pb.h"

namespace moe {
namespace {

class CuttingCoordinator final : public v1::CoordinatorService::Service {
 public:
  CuttingCoordinator() {
    grpc::Service* const services[] = {this};
    auto server = RpcServer::Start("127.0.0.1:0", services, RpcServer::Options());
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  grpc::Status Register(grpc::ServerContext*, const v1::RegisterRequest*,
                        v1::RegisterResponse* response) override {
    if (++registrations_ == 1) return Cut();
    response->set_member("worker/w");
    response->set_incarnation(1);
    response->set_heartbeat_ms(100);
    response->set_lease_ms(1000);
    return grpc::Status::OK;
  }
  grpc::Status Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest*,
                         v1::HeartbeatResponse* response) override {
    response->mutable_state()->set_phase(v1::PHASE_RUNNING);
    response->mutable_state()->set_generation(1);
    return ++heartbeats_ == 2 ? Cut() : grpc::Status::OK;
  }
  grpc::Status ReportStep(grpc::ServerContext*, const v1::ReportStepRequest*,
                          v1::ReportStepResponse* response) override {
    if (++reports_ == 1) return Cut();
    response->set_cut(true);
    return grpc::Status::OK;
  }
  grpc::Status FinishWork(grpc::ServerContext*, const v1::FinishWorkRequest*,
                          v1::FinishWorkResponse*) override {
    return ++finishes_ == 1 ? Cut() : grpc::Status::OK;
  }

  const std::string& address() const { return server_->address(); }
  int heartbeats() const { return heartbeats_; }

 private:
  static grpc::Status Cut() { return {grpc::StatusCode::CANCELLED, "CANCELLED"}; }

  std::atomic<int> registrations_ = 0;
  std::atomic<int> heartbeats_ = 0;
  std::atomic<int> reports_ = 0;
  std::atomic<int> finishes_ = 0;
  std::unique_ptr<RpcServer> server_;
};

TEST(CutShortTest, EachCallIsMadeAgain) {
  const CuttingCoordinator coordinator;
  Member::Options options;
  options.coordinator = coordinator.address();
  options.registration.set_kind(v1::MEMBER_KIND_WORKER);
  options.registration.set_name("w");
  auto member = Member::Join(std::move(options));
  ASSERT_TRUE(member.ok()) << member.status();
  (*member)->Enter(1);
  const auto state =
      (*member)->WaitFor("a third heartbeat", absl::Seconds(30),
                         [&](const auto&) { return coordinator.heartbeats() > 2; });
  ASSERT_TRUE(state.ok()) << state.status();
  const auto answer = (*member)->ReportStep(v1::ReportStepRequest());
  ASSERT_TRUE(answer.ok()) << answer.status();
  ASSERT_TRUE(answer->has_value());
  EXPECT_TRUE((*answer)->cut());
  const absl::Status finished = (*member)->FinishWork();
  EXPECT_TRUE(finished.ok()) << finished;
  EXPECT_TRUE((*member)->generation_health().ok()) << (*member)->generation_health();
}

}  // namespace
}  // namespace moe
