// How much a worker may ask of a server before it has answers.
#include <gmock/gmock.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "common/base/protocol.h"
#include "tests/server/shard_host_fixture.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

v1::Job TableJob() {
  v1::Job job = testing::MadeJob();
  job.mutable_model()->mutable_tables()->set_shards(2);
  job.mutable_model()->mutable_tables()->set_candidates(3);
  return job;
}

class UnansweredTest : public testing::ShardHostTest {
 protected:
  UnansweredTest() : ShardHostTest(TableJob(), /*hierarchical=*/false) {}

  static v1::ExchangeRequest ScoreOf(uint32_t replica, uint32_t part) {
    v1::ExchangeRequest request = testing::PullOf({}, 0);
    v1::ScoreRequest& score = *request.mutable_score();
    score.set_part(part);
    v1::ScoreFrame& frame = *score.add_frames();
    frame.set_replica(replica);
    frame.set_x(testing::Bytes(std::vector<float>(testing::kWidth, 0.5f)));
    const int32_t target = 4;
    frame.set_target(&target, sizeof(target));
    return request;
  }
};

// Keeps the engine until it is let go.
class HoldingSink : public ReplySink {
 public:
  void Send(std::shared_ptr<const v1::ExchangeResponse>) override {
    held.Notify();
    let_go.WaitForNotification();
  }
  absl::Notification held, let_go;
};

TEST_F(UnansweredTest, Scores) {
  const auto holding = std::make_shared<HoldingSink>();
  ASSERT_TRUE(host_->Handle("worker/w1", ScoreOf(2, 0), holding).ok());
  holding->held.WaitForNotification();
  for (uint32_t part = 0; part < kMaxScoresUnderWay; ++part) {
    const absl::Status status = Send("worker/w0", ScoreOf(0, part));
    EXPECT_TRUE(status.ok()) << status;
  }
  const absl::Status one_more = Send("worker/w0", ScoreOf(0, kMaxScoresUnderWay));
  EXPECT_EQ(one_more.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(one_more.message()),
              AllOf(HasSubstr("score of evaluation batch 0 wave 0 of worker/w0"),
                    HasSubstr("has 2 scores without an answer already")));
  // Each worker for itself. The one that holds the engine is answered.
  for (uint32_t part = 1; part <= kMaxScoresUnderWay; ++part) {
    EXPECT_TRUE(Send("worker/w1", ScoreOf(2, part)).ok());
  }
  holding->let_go.Notify();
  for (uint32_t part = 0; part < kMaxScoresUnderWay; ++part) {
    EXPECT_EQ(Next("worker/w0").score().part(), part);
    EXPECT_EQ(Next("worker/w1").score().part(), part + 1);
  }
  EXPECT_TRUE(Send("worker/w0", ScoreOf(0, kMaxScoresUnderWay)).ok());
  EXPECT_EQ(Next("worker/w0").score().replies(0).shards_size(), 2);
}

// A score is worked on frame by frame and shard by shard, so that nothing waits for the whole of it.
TEST_F(UnansweredTest, APullDoesNotWaitForAWholeScore) {
  const auto holding = std::make_shared<HoldingSink>();
  ASSERT_TRUE(host_->Handle("worker/w1", ScoreOf(2, 0), holding).ok());
  holding->held.WaitForNotification();
  v1::ExchangeRequest score = ScoreOf(0, 0);
  *score.mutable_score()->add_frames() = score.score().frames(0);
  score.mutable_score()->mutable_frames(1)->set_replica(1);
  ASSERT_TRUE(Send("worker/w0", score).ok());
  ASSERT_TRUE(Send("worker/w0", testing::PullOf({"dense/0"}, 0)).ok());
  holding->let_go.Notify();
  EXPECT_TRUE(Next("worker/w0").has_pull());
  const v1::ScoreResponse response = Next("worker/w0").score();
  ASSERT_EQ(response.replies_size(), 2);
  for (uint32_t r = 0; r < 2; ++r) {
    EXPECT_EQ(response.replies(r).replica(), r);
    ASSERT_EQ(response.replies(r).shards_size(), 2);
    EXPECT_EQ(response.replies(r).shards(0).shard(), "softmax/rows0");
    EXPECT_EQ(response.replies(r).shards(1).shard(), "softmax/rows1");
  }
}

TEST_F(UnansweredTest, TokensOfAScore) {
  const auto score_of = [](const std::vector<int>& tokens) {
    v1::ExchangeRequest request = testing::PullOf({}, 0);
    for (size_t r = 0; r < tokens.size(); ++r) {
      v1::ScoreFrame& frame = *request.mutable_score()->add_frames();
      frame.set_replica(static_cast<uint32_t>(r));
      frame.set_x(testing::Bytes(std::vector<float>(tokens[r] * testing::kWidth, 0.5f)));
      frame.set_target(std::string(tokens[r] * sizeof(int32_t), '\0'));
    }
    return request;
  };
  EXPECT_TRUE(Send("worker/w0", score_of({kMaxScoreTokens - 9, 9})).ok());
  EXPECT_EQ(Next("worker/w0").score().replies_size(), 2);
  const absl::Status status = Send("worker/w0", score_of({kMaxScoreTokens - 9, 10}));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("has 513 tokens instead of at most 512"));
}

TEST_F(UnansweredTest, Pulls) {
  // Of the next version, which doesn't come.
  const size_t most = 2 * plan_.shards.size();
  for (size_t i = 0; i < most; ++i) {
    const absl::Status status = Send("worker/w0", testing::PullOf({"dense/0"}, 1));
    EXPECT_TRUE(status.ok()) << status;
  }
  const absl::Status one_more = Send("worker/w0", testing::PullOf({"dense/0"}, 1));
  EXPECT_EQ(one_more.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(one_more.message()),
              AllOf(HasSubstr("pull of worker/w0"),
                    HasSubstr(absl::StrCat("has ", most, " pulls without an answer"))));
  EXPECT_TRUE(Send("worker/w1", testing::PullOf({"dense/0"}, 0)).ok());
  EXPECT_EQ(Next("worker/w1").pull().shards_size(), 1);
}

// Those that are answered don't count.
TEST_F(UnansweredTest, PullsOneAfterTheOther) {
  for (size_t i = 0; i < 3 * plan_.shards.size(); ++i) {
    ASSERT_TRUE(Send("worker/w0", testing::PullOf({"dense/0"}, 0)).ok());
    EXPECT_EQ(Next("worker/w0").pull().shards_size(), 1);
  }
}

TEST_F(UnansweredTest, AShardOnceInAPull) {
  EXPECT_THAT(
      std::string(
          Send("worker/w0", testing::PullOf({"dense/0", "dense/0"}, 0)).message()),
      HasSubstr("asks for dense/0 twice"));
}

}  // namespace
}  // namespace moe
