// Who may become a member.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/coordinator/controller_fixture.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class RegistrationTest : public ControllerFixture {
 protected:
  void SetUp() override {
    ControllerFixture::SetUp();
    Create();
  }
  void ExpectRefused(const v1::RegisterRequest& request, absl::StatusCode code,
                     const testing::Matcher<std::string>& message) {
    const absl::Status status = Join(request);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), message);
  }
};

TEST_F(RegistrationTest, TellsTheMemberItsTerms) {
  const auto response = controller_->Register(Registration("worker/a"));
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->member(), "worker/a");
  EXPECT_EQ(response->incarnation(), 1);
  EXPECT_EQ(response->heartbeat_ms(), 500);
  EXPECT_EQ(response->lease_ms(), 5000);
}

TEST_F(RegistrationTest, KindAndName) {
  v1::RegisterRequest request = Registration("worker/a");
  request.clear_kind();
  ExpectRefused(request, absl::StatusCode::kInvalidArgument,
                HasSubstr("server or a worker"));
  for (const char* name : {"", "a b", "a/b", "\n"}) {
    request = Registration("worker/a");
    request.set_name(name);
    ExpectRefused(request, absl::StatusCode::kInvalidArgument, HasSubstr("is no name"));
  }
  request.set_name(std::string(101, 'a'));
  ExpectRefused(request, absl::StatusCode::kInvalidArgument, HasSubstr("at most 100"));
}

TEST_F(RegistrationTest, ProtocolVersion) {
  v1::RegisterRequest request = Registration("worker/a");
  request.set_protocol_version(kProtocolVersion + 1);
  ExpectRefused(request, absl::StatusCode::kFailedPrecondition,
                AllOf(HasSubstr("worker/a speaks protocol"), HasSubstr("same release")));
}

TEST_F(RegistrationTest, NumericsNameBothMembers) {
  ASSERT_TRUE(Join("server/a").ok());
  v1::RegisterRequest request = Registration("worker/a");
  request.set_numerics("fedcba9876543210");
  request.set_numerics_description("AVX-512, OpenBLAS SkylakeX");
  ExpectRefused(request, absl::StatusCode::kFailedPrecondition,
                AllOf(HasSubstr("worker/a (AVX-512, OpenBLAS SkylakeX"),
                      HasSubstr("server/a (AVX2, OpenBLAS Zen"),
                      HasSubstr("allow_mixed_numerics")));
}

TEST_F(RegistrationTest, NumericsMayMixIfTheJobSaysSo) {
  options_.job.set_allow_mixed_numerics(true);
  Create();
  ASSERT_TRUE(Join("server/a").ok());
  v1::RegisterRequest request = Registration("worker/a");
  request.set_numerics("fedcba9876543210");
  EXPECT_TRUE(Join(request).ok());
}

TEST_F(RegistrationTest, WorkersReadTheSameData) {
  ASSERT_TRUE(Join("worker/a").ok());
  v1::RegisterRequest request = Registration("worker/b");
  request.mutable_data()->set_sha256("07e4");
  ExpectRefused(
      request, absl::StatusCode::kFailedPrecondition,
      AllOf(HasSubstr("worker/b reads other data (SHA-256 07e4) than worker/a (da7a)")));
}

TEST_F(RegistrationTest, VocabularyFitsTheData) {
  options_.job.mutable_model()->set_vocabulary(19);
  Create();
  ExpectRefused(Registration("worker/a"), absl::StatusCode::kFailedPrecondition,
                HasSubstr("model.vocabulary is 19"));
  options_.job.mutable_model()->set_vocabulary(20);
  Create();
  EXPECT_TRUE(Join("worker/a").ok());
}

TEST_F(RegistrationTest, NamesAreUniqueWhileTheirMemberLives) {
  ASSERT_TRUE(Join("worker/a").ok());
  ASSERT_TRUE(Join("server/a").ok());
  ExpectRefused(Registration("worker/a"), absl::StatusCode::kAlreadyExists,
                HasSubstr("worker/a (host pid 123) lives"));
  LeaveCluster("worker/a");
  ASSERT_TRUE(Join("worker/a").ok());
  EXPECT_EQ(incarnations_["worker/a"], 2);
}

TEST_F(RegistrationTest, RepetitionIsAnsweredAlike) {
  v1::RegisterRequest request = Registration("worker/a");
  request.set_nonce(5);
  ASSERT_TRUE(Join(request).ok());
  ASSERT_TRUE(Join(request).ok());
  EXPECT_EQ(incarnations_["worker/a"], 1);
  request.set_nonce(6);
  ExpectRefused(request, absl::StatusCode::kUnavailable, HasSubstr("or is dead"));
  Advance(absl::Seconds(1));
  ASSERT_TRUE(Beat("worker/a").ok());
  ExpectRefused(request, absl::StatusCode::kAlreadyExists, HasSubstr("lives"));
}

// Who asks for a taken place is remembered, but not any number of them.
TEST_F(RegistrationTest, OldClaimsMakeWay) {
  v1::RegisterRequest request = Registration("worker/a");
  request.set_nonce(5);
  ASSERT_TRUE(Join(request).ok());
  for (uint64_t nonce = 6; nonce < 1010; ++nonce) {
    request.set_nonce(nonce);
    ASSERT_EQ(Join(request).code(), absl::StatusCode::kUnavailable);
    Advance(absl::Milliseconds(1));
  }
  ASSERT_TRUE(Beat("worker/a").ok());
  EXPECT_EQ(Join(request).code(), absl::StatusCode::kAlreadyExists);
  request.set_nonce(6);
  EXPECT_EQ(Join(request).code(), absl::StatusCode::kUnavailable);
}

TEST_F(RegistrationTest, ServersHaveAddressesOfTheirOwn) {
  v1::RegisterRequest request = Registration("server/a");
  request.clear_address();
  ExpectRefused(request, absl::StatusCode::kInvalidArgument, HasSubstr("no address"));
  ASSERT_TRUE(Join("server/a").ok());
  request = Registration("server/b");
  request.set_address("a:1");
  ExpectRefused(request, absl::StatusCode::kAlreadyExists,
                HasSubstr("a:1, which is that of server/a"));
}

TEST_F(RegistrationTest, ExtraMembersComeTooLate) {
  ASSERT_TRUE(Join("worker/a").ok());
  ASSERT_TRUE(Join("worker/b").ok());
  ExpectRefused(Registration("worker/c"), absl::StatusCode::kFailedPrecondition,
                AllOf(HasSubstr("worker/c comes too late: the job takes 2 workers"),
                      HasSubstr("worker/a, worker/b")));
  EXPECT_EQ(State().phase(), v1::PHASE_WAITING);
}

TEST_F(RegistrationTest, NobodyJoinsAJobThatIsOver) {
  ASSERT_TRUE(Join("worker/a").ok());
  controller_->Stop("stopped by the test");
  ExpectRefused(Registration("worker/b"), absl::StatusCode::kFailedPrecondition,
                HasSubstr("the job failed: stopped by the test"));
}

}  // namespace
}  // namespace moe
