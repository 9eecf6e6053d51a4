#include "server/coordinator/coordinator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/io/file.h"
#include "common/net/channel.h"
#include "proto/moe/v1/status.grpc.pb.h"
#include "tests/coordinator/small_job.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

class CoordinatorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string dir =
        absl::StrCat(testing::TempDir(), "/coordinator_",
                     testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(dir);
    options_.job = SmallJob();
    options_.checkpoint_dir = dir + "/checkpoints";
    options_.state_dir = dir + "/state";
    options_.progress = &progress_;
  }
  std::string Refusal() {
    return std::string(Coordinator::Start(options_).status().message());
  }

  Coordinator::Options options_;
  std::ostringstream progress_;
};

TEST_F(CoordinatorTest, AnswersForItsStatus) {
  auto coordinator = Coordinator::Start(options_);
  ASSERT_TRUE(coordinator.ok()) << coordinator.status();
  const auto stub =
      v1::ClusterStatusService::NewStub(MakeChannel((*coordinator)->address()));
  grpc::ClientContext context;
  v1::GetClusterStatusResponse response;
  const grpc::Status status = stub->GetClusterStatus(&context, {}, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.state().phase(), v1::PHASE_WAITING);
  EXPECT_EQ(response.state().waiting_for(),
            "waiting for 1 of 1 server and 1 of 1 worker");
}

TEST_F(CoordinatorTest, StopEndsTheWait) {
  auto coordinator = Coordinator::Start(options_);
  ASSERT_TRUE(coordinator.ok()) << coordinator.status();
  (*coordinator)->Stop();
  const absl::Status status = (*coordinator)->Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ((*coordinator)->summary().phase, v1::PHASE_FAILED);
  coordinator->reset();
  EXPECT_THAT(progress_.str(), HasSubstr("stopped: the coordinator was told to stop\n"));
}

TEST_F(CoordinatorTest, OneForEachStateFolder) {
  auto first = Coordinator::Start(options_);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_THAT(Refusal(), HasSubstr("belongs to another coordinator"));
}

TEST_F(CoordinatorTest, RefusesWhatCannotWork) {
  Coordinator::Options good = options_;
  options_.checkpoint_dir = "";
  EXPECT_THAT(Refusal(), HasSubstr("--checkpoint_dir"));
  options_ = good;
  options_.resume = true;
  EXPECT_THAT(Refusal(), HasSubstr("cannot resume: "));
  EXPECT_THAT(Refusal(), HasSubstr("holds no checkpoint"));
  options_ = good;
  options_.workers = 4;
  EXPECT_THAT(Refusal(), HasSubstr("training.replicas"));
  options_ = good;
  options_.job.mutable_model()->set_d_model(-1);
  EXPECT_THAT(Refusal(), HasSubstr("d_model"));
  options_ = good;
  auto other = Coordinator::Start(options_);
  ASSERT_TRUE(other.ok()) << other.status();
  options_.state_dir = "";
  options_.listen = (*other)->address();
  EXPECT_THAT(Refusal(), HasSubstr((*other)->address()));
}

TEST_F(CoordinatorTest, RemovesCutsThatWereNeverCommitted) {
  const std::string cut = options_.checkpoint_dir + "/step-00000003";
  ASSERT_TRUE(MakeDirs(cut).ok());
  ASSERT_TRUE(WriteFileAtomically(cut + "/dense-0.safetensors", "half").ok());
  auto coordinator = Coordinator::Start(options_);
  ASSERT_TRUE(coordinator.ok()) << coordinator.status();
  EXPECT_FALSE(std::filesystem::exists(cut));
}

}  // namespace
}  // namespace moe
