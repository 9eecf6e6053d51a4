#include "server/transfer_messages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "server/dense_shard.h"
#include "tests/server/made_step.h"

namespace moe {
namespace {

using Message = v1::FetchShardResponse;
using ::testing::HasSubstr;

class TransferMessagesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string error;
    backend_ = MakeCpuBackend(1, &error);
    ASSERT_NE(backend_, nullptr) << error;
    plan_ = MakeModelPlan(job_);
    source_ = Make();
    for (uint32_t r = 0; r < testing::kReplicas; ++r) {
      const std::vector<float> gradient =
          testing::MakeGradient(0, "dense/0", source_->size(), r);
      ASSERT_TRUE(source_->AddGradient({0, r}, gradient).ok());
    }
    source_->Apply(0.5, 0.25);
    ASSERT_GT(source_->pieces(), 1);
  }

  std::unique_ptr<DenseShard> Make() {
    auto shard = std::make_unique<DenseShard>(*backend_, plan_, plan_.shards[0], job_);
    shard->Initialize();
    return shard;
  }
  // What the source sends to who has `shard`: a message for each piece, and the end.
  std::vector<Message> MessagesFor(const Shard& shard) {
    const std::vector<uint64_t> have = PieceVersions(shard);
    std::vector<Message> sent;
    const absl::Status status = SendPieces(
        source_->pieces(),
        [&](int64_t first) { return ReadPieces(*source_, have, first, 1); },
        [&](const Message& message) {
          sent.push_back(message);
          return true;
        });
    EXPECT_TRUE(status.ok()) << status;
    return sent;
  }
  static absl::Status Receive(const std::vector<Message>& messages, Shard& shard) {
    PieceReceiver receiver(shard);
    for (const Message& message : messages) {
      if (absl::Status taken = receiver.Take(message); !taken.ok()) return taken;
    }
    return receiver.Finish();
  }
  // That the messages are refused, and that who fetches once more has all.
  void ExpectRefused(const std::vector<Message>& messages, const std::string& why) {
    const std::unique_ptr<DenseShard> shard = Make();
    const absl::Status status = Receive(messages, *shard);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(status.message(), HasSubstr(why));
    EXPECT_TRUE(Receive(MessagesFor(*shard), *shard).ok());
    EXPECT_EQ(shard->Content(), source_->Content());
  }

  const v1::Job job_ = testing::MadeJob("sgd {}");
  std::unique_ptr<Backend> backend_;
  ModelPlan plan_;
  std::unique_ptr<DenseShard> source_;
};

TEST_F(TransferMessagesTest, AllArrivesAndOnlyOnce) {
  const std::unique_ptr<DenseShard> shard = Make();
  const std::vector<Message> sent = MessagesFor(*shard);
  EXPECT_EQ(sent.size(), static_cast<size_t>(source_->pieces()) + 1);
  EXPECT_TRUE(Receive(sent, *shard).ok());
  EXPECT_EQ(shard->Content(), source_->Content());
  EXPECT_EQ(PieceVersions(*shard), PieceVersions(*source_));
  // Nothing has changed since.
  EXPECT_EQ(MessagesFor(*shard).size(), 1);
}

TEST_F(TransferMessagesTest, WhatIsDamagedIsntTaken) {
  const std::vector<Message> sent = MessagesFor(*Make());
  for (size_t i = 0; i < sent.size(); ++i) {
    std::vector<Message> damaged = sent;
    if (sent[i].pieces().empty()) {
      damaged[i].set_last(false);
    } else {
      (*damaged[i].mutable_pieces(0)->mutable_content())[1] ^= 4;
    }
    ExpectRefused(damaged, "damaged on its way");
    damaged = sent;
    damaged[i].clear_pieces();
    damaged[i].set_sequence(sent[i].sequence() ^ 1);
    ExpectRefused(damaged, "damaged on its way");
  }
}

TEST_F(TransferMessagesTest, WhatIsLostIsMissed) {
  const std::vector<Message> sent = MessagesFor(*Make());
  for (size_t i = 0; i < sent.size(); ++i) {
    std::vector<Message> rest = sent;
    rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(i));
    ExpectRefused(rest, i + 1 < sent.size() ? "was lost" : "they have an end");
    std::vector<Message> twice = sent;
    twice.insert(twice.begin() + static_cast<std::ptrdiff_t>(i), sent[i]);
    ExpectRefused(twice, "was lost");
  }
  ExpectRefused({}, "they have an end");
}

TEST_F(TransferMessagesTest, ASourceThatFailsSendsNoEnd) {
  std::vector<Message> sent;
  const absl::Status status = SendPieces(
      2, [](int64_t) { return absl::NotFoundError("gone"); },
      [&](const Message& message) {
        sent.push_back(message);
        return true;
      });
  EXPECT_EQ(status, absl::NotFoundError("gone"));
  EXPECT_TRUE(sent.empty());
}

}  // namespace
}  // namespace moe
