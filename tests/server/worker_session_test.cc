#include "server/worker_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "tests/server/made_step.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::RecordingSink;

constexpr uint64_t kIncarnation = 4;
constexpr absl::Duration kLong = absl::Seconds(20);
constexpr absl::Duration kShort = absl::Milliseconds(20);

v1::HelloRequest Hello(uint64_t sent, uint64_t incarnation = kIncarnation) {
  v1::HelloRequest hello;
  hello.set_sent(sent);
  hello.set_incarnation(incarnation);
  return hello;
}

v1::ExchangeRequest Message(uint64_t sequence) {
  v1::ExchangeRequest request;
  request.set_sequence(sequence);
  return request;
}

class WorkerSessionTest : public ::testing::Test {
 protected:
  absl::Status Attach(
      const v1::HelloRequest& hello, absl::Duration patience = kLong,
      std::function<void()> cancel = [] {}) {
    sink_ = std::make_shared<RecordingSink>();
    return session_.Attach(hello, {sink_, std::move(cancel)}, {}, patience);
  }
  absl::Status Put(uint64_t sequence) {
    return session_.Put(Message(sequence),
                        [&](Received<v1::ExchangeRequest> request, bool again) {
                          (again ? again_ : taken_).push_back(request.message.sequence());
                          return absl::OkStatus();
                        });
  }

  WorkerSession session_{"worker/w0", kIncarnation};
  std::shared_ptr<RecordingSink> sink_;
  std::vector<uint64_t> taken_;
  std::vector<uint64_t> again_;
};

TEST_F(WorkerSessionTest, MessagesAreTakenOnceAndInTheirOrder) {
  ASSERT_TRUE(Attach(Hello(0)).ok());
  EXPECT_EQ(sink_->Next().hello().received(), 0u);
  for (const uint64_t sequence : {2, 4, 2, 1, 1, 3, 2, 5}) {
    EXPECT_TRUE(Put(sequence).ok());
  }
  EXPECT_THAT(taken_, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(again_, ElementsAre(1, 2));
}

TEST_F(WorkerSessionTest, FewMayBeAhead) {
  ASSERT_TRUE(Attach(Hello(0)).ok());
  EXPECT_TRUE(Put(WorkerSession::kAhead).ok());
  EXPECT_THAT(std::string(Put(WorkerSession::kAhead + 1).message()),
              HasSubstr("sent message 257 before message 1"));
  EXPECT_THAT(std::string(Put(0).message()), HasSubstr("without a sequence"));
}

TEST_F(WorkerSessionTest, LittleMayBeAhead) {
  ASSERT_TRUE(Attach(Hello(0)).ok());
  const auto put = [&](uint64_t sequence) {
    v1::ExchangeRequest request = Message(sequence);
    request.mutable_forward()->add_frames()->set_x(
        std::string(WorkerSession::kAheadBytes / 3, 'x'));
    return session_.Put(std::move(request),
                        [&](Received<v1::ExchangeRequest> taken, bool) {
                          taken_.push_back(taken.message.sequence());
                          return absl::OkStatus();
                        });
  };
  EXPECT_TRUE(put(2).ok());
  EXPECT_TRUE(put(2).ok());
  EXPECT_TRUE(put(3).ok());
  const absl::Status too_much = put(4);
  EXPECT_TRUE(absl::IsDataLoss(too_much)) << too_much;
  EXPECT_THAT(std::string(too_much.message()),
              HasSubstr("more than 64 MiB came before message 1, which is missing"));
  // What has been taken makes room, and so does a stream that ends.
  EXPECT_TRUE(put(1).ok());
  EXPECT_TRUE(put(5).ok());
  EXPECT_TRUE(put(6).ok());
  EXPECT_FALSE(put(7).ok());
  session_.Detach();
  ASSERT_TRUE(Attach(Hello(7)).ok());
  EXPECT_TRUE(put(5).ok());
  EXPECT_TRUE(put(6).ok());
  EXPECT_TRUE(put(4).ok());
  EXPECT_THAT(taken_, ElementsAre(1, 2, 3, 4, 5, 6));
}

TEST_F(WorkerSessionTest, WhatIsRefusedWasNotTaken) {
  ASSERT_TRUE(Attach(Hello(0)).ok());
  const absl::Status refused = session_.Put(
      Message(1),
      [](Received<v1::ExchangeRequest>, bool) { return absl::InternalError("no"); });
  EXPECT_EQ(refused.message(), "no");
  session_.Detach();
  ASSERT_TRUE(Attach(Hello(1)).ok());
  EXPECT_EQ(sink_->Next().hello().received(), 0u);
}

TEST_F(WorkerSessionTest, TheNextStreamLearnsWhatHasCome) {
  ASSERT_TRUE(Attach(Hello(0)).ok());
  ASSERT_TRUE(Put(1).ok());
  ASSERT_TRUE(Put(3).ok());
  const uint64_t first = session_.Detach();
  session_.Send(std::make_shared<v1::ExchangeResponse>());  // to nobody
  EXPECT_FALSE(session_.AwaitNext(first, kShort));
  ASSERT_TRUE(Attach(Hello(3)).ok());
  EXPECT_TRUE(session_.AwaitNext(first, kLong));
  EXPECT_EQ(sink_->Next().hello().received(), 1u);
  EXPECT_EQ(sink_->waiting(), 0u);
  // What had come early comes again.
  for (const uint64_t sequence : {2, 3}) EXPECT_TRUE(Put(sequence).ok());
  EXPECT_THAT(taken_, ElementsAre(1, 2, 3));
  EXPECT_THAT(again_, ElementsAre());
}

TEST_F(WorkerSessionTest, AStreamThatSeemsAliveIsCancelledFirst) {
  std::atomic<bool> cancelled = false;
  ASSERT_TRUE(Attach(Hello(0), kLong, [&] { cancelled = true; }).ok());
  // Its reader doesn't end.
  EXPECT_THAT(std::string(Attach(Hello(0), kShort).message()),
              HasSubstr("the stream before this one of worker/w0 doesn't end"));
  EXPECT_TRUE(cancelled);
  // It does, after one message more.
  std::thread reader([&] {
    EXPECT_TRUE(Put(1).ok());
    session_.Detach();
  });
  EXPECT_TRUE(Attach(Hello(1)).ok());
  reader.join();
  EXPECT_EQ(sink_->Next().hello().received(), 1u);
}

TEST_F(WorkerSessionTest, OnlyWhoBeganGoesOn) {
  EXPECT_EQ(Attach(Hello(7)).code(), absl::StatusCode::kUnavailable) << "lost memory";
  ASSERT_TRUE(Attach(Hello(0)).ok());
  ASSERT_TRUE(Put(1).ok());
  EXPECT_EQ(Attach(Hello(1, 5)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Attach(Hello(0)).code(), absl::StatusCode::kFailedPrecondition);
  const uint64_t last = session_.Detach();
  session_.Close();
  EXPECT_FALSE(session_.AwaitNext(last, kLong)) << "at once";
  EXPECT_EQ(Attach(Hello(1)).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace moe
