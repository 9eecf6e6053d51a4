#include "client/shard_stream.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/net/checksum.h"
#include "glog/logging.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/fake_server.h"

namespace moe {
namespace {

using ::testing::HasSubstr;
using Responses = std::vector<v1::ExchangeResponse>;

ShardStreamOptions OptionsFor(const FakeServer& server, absl::Duration timeout) {
  return {.server = server.id(),
          .address = server.address(),
          .member = "worker/w0",
          .incarnation = 5,
          .generation = kFakeGeneration,
          .timeout = timeout};
}

v1::ExchangeRequest Forward(uint64_t step, uint32_t wave = 0) {
  v1::ExchangeRequest request;
  v1::FrameId& id = *request.mutable_forward()->mutable_id();
  id.set_step(step);
  id.set_wave(wave);
  id.set_layer(1);
  id.set_mode(v1::MODE_TRAIN);
  return request;
}

v1::ExchangeResponse AnswerTo(const v1::ExchangeRequest& request) {
  v1::ExchangeResponse response;
  *response.mutable_forward()->mutable_id() = request.forward().id();
  return response;
}

absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

TEST(ShardStream, ADamagedAnswerComesAgain) {
  v1::ExchangeRequest asked;
  int answers = 0;
  FakeServer server("server/s0", [&](const auto& request, Responses* responses) {
    if (answers++ == 0) asked = request;
    responses->push_back(AnswerTo(request));
    responses->back().set_generation(kFakeGeneration);
    responses->back().mutable_forward()->add_replies()->add_groups()->set_y("12345678");
    Seal(&responses->back());
    if (answers > 1) return grpc::Status::OK;
    responses->back().mutable_forward()->mutable_replies(0)->mutable_groups(0)->set_y(
        "12345679");
    return grpc::Status::OK;
  });
  auto stream = OpenShardStream(OptionsFor(server, absl::Seconds(30)));
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Send(Forward(3, 0)).ok());
  const auto response = (*stream)->Await(KeyOf(Forward(3, 0)), Soon());
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->message.forward().replies(0).groups(0).y(), "12345678");
  EXPECT_TRUE(CheckSeal(asked).ok()) << CheckSeal(asked);
}

TEST(ShardStream, SaysHelloFirstAndFilesAnswersByKey) {
  // Holds the first answer back until the second request has come.
  v1::ExchangeRequest first;
  FakeServer server("server/s0", [&](const auto& request, Responses* responses) {
    if (request.forward().id().wave() == 0) {
      first = request;
    } else {
      responses->push_back(AnswerTo(request));
      responses->push_back(AnswerTo(first));
    }
    return grpc::Status::OK;
  });
  auto stream = OpenShardStream(OptionsFor(server, absl::Seconds(30)));
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Send(Forward(3, 0)).ok());
  ASSERT_TRUE((*stream)->Send(Forward(3, 1)).ok());
  for (const uint32_t wave : {0, 1}) {
    const auto response = (*stream)->Await(KeyOf(Forward(3, wave)), Soon());
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_EQ(response->message.forward().id().wave(), wave);
  }
  const auto requests = server.requests();
  ASSERT_EQ(requests.size(), 3u);
  EXPECT_EQ(requests[0].hello().member(), "worker/w0");
  for (const auto& request : requests) EXPECT_EQ(request.generation(), kFakeGeneration);
}

TEST(ShardStream, ALateAnswerNamesServerAndMessage) {
  FakeServer server("server/s0",
                    [](const auto&, Responses*) { return grpc::Status::OK; });
  auto stream = OpenShardStream(OptionsFor(server, absl::Seconds(60)));
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Send(Forward(17)).ok());
  const absl::Status late =
      (*stream)
          ->Await(KeyOf(Forward(17)), absl::Now() + absl::Milliseconds(200))
          .status();
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(late.message(),
            "server/s0 at " + server.address() +
                " did not answer forward step 17 wave 0 layer 1 within 200ms");
}

TEST(ShardStream, AFailureComesBackWithTheServersName) {
  FakeServer server("server/s0", [](const auto&, Responses* responses) {
    v1::Failure& failure = *responses->emplace_back().mutable_failure();
    failure.set_code(static_cast<int>(absl::StatusCode::kDeadlineExceeded));
    failure.set_message("worker/w1 did not send replica 2");
    return grpc::Status::OK;
  });
  auto stream = OpenShardStream(OptionsFor(server, absl::Seconds(30)));
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Send(Forward(1)).ok());
  const absl::Status failure = (*stream)->Await(KeyOf(Forward(1)), Soon()).status();
  EXPECT_EQ(failure.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(failure.message(),
            "server/s0 at " + server.address() + ": worker/w1 did not send replica 2");
  // And so does everything after it.
  EXPECT_EQ((*stream)->Await(KeyOf(Forward(2)), Soon()).status(), failure);
}

TEST(ShardStream, ABrokenStreamKeepsWhatHadCome) {
  FakeServer server("server/s0", [](const auto& request, Responses* responses) {
    if (request.forward().id().step() == 2) {
      return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "out of rows");
    }
    responses->push_back(AnswerTo(request));
    return grpc::Status::OK;
  });
  auto stream = OpenShardStream(OptionsFor(server, absl::Seconds(30)));
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Send(Forward(1)).ok());
  ASSERT_TRUE((*stream)->Send(Forward(2)).ok());
  const absl::Status broken = (*stream)->Await(KeyOf(Forward(2)), Soon()).status();
  EXPECT_EQ(broken.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(broken.message(), "server/s0 at " + server.address() + ": out of rows");
  EXPECT_TRUE((*stream)->Await(KeyOf(Forward(1)), Soon()).ok());
  EXPECT_EQ((*stream)->Send(Forward(3)), broken);
}

TEST(ShardStream, ADeadServerIsUnavailable) {
  auto server = std::make_unique<FakeServer>(
      "server/s0", [](const auto&, Responses*) { return grpc::Status::OK; });
  const ShardStreamOptions options = OptionsFor(*server, absl::Seconds(30));
  auto stream = OpenShardStream(options);
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Send(Forward(1)).ok());
  server.reset();
  const absl::Status lost = (*stream)->Await(KeyOf(Forward(1)), Soon()).status();
  EXPECT_FALSE(lost.ok());
  EXPECT_THAT(std::string(lost.message()), HasSubstr("server/s0 at "));

  const absl::Status refused = OpenShardStream(options).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("server/s0 at "));
}

TEST(ShardStream, CancelWakesAWaitAndStays) {
  FakeServer server("server/s0", [](const auto& request, Responses* responses) {
    if (request.forward().id().step() == 1) responses->push_back(AnswerTo(request));
    return grpc::Status::OK;
  });
  auto stream = OpenShardStream(OptionsFor(server, absl::Seconds(30)));
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Send(Forward(1)).ok());
  ASSERT_TRUE((*stream)->Send(Forward(2)).ok());
  absl::Status woken;
  std::thread waiter(
      [&] { woken = (*stream)->Await(KeyOf(Forward(2)), Soon()).status(); });
  const absl::Status cause = absl::AbortedError("worker/w1 is lost");
  (*stream)->Cancel(cause);
  (*stream)->Cancel(absl::CancelledError("too late"));
  waiter.join();
  EXPECT_EQ(woken, cause);
  EXPECT_EQ((*stream)->Await(KeyOf(Forward(1)), Soon()).status(), cause);
  EXPECT_EQ((*stream)->Send(Forward(3)), cause);
}

TEST(ShardStream, RefusesAnswersThatWereNotAskedFor) {
  FakeServer server("server/s0", [](const auto&, Responses* responses) {
    responses->push_back(AnswerTo(Forward(99)));
    return grpc::Status::OK;
  });
  auto stream = OpenShardStream(OptionsFor(server, absl::Seconds(30)));
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Send(Forward(1)).ok());
  EXPECT_THAT(std::string((*stream)->Await(KeyOf(Forward(1)), Soon()).status().message()),
              HasSubstr("answered what was not asked: forward step 99 wave 0 layer 1"));
}

TEST(ShardStream, RefusesAnotherGeneration) {
  FakeServer server("server/s0", [](const auto& request, Responses* responses) {
    responses->push_back(AnswerTo(request));
    responses->back().set_generation(kFakeGeneration - 1);
    return grpc::Status::OK;
  });
  auto stream = OpenShardStream(OptionsFor(server, absl::Seconds(30)));
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Send(Forward(1)).ok());
  const absl::Status status = (*stream)->Await(KeyOf(Forward(1)), Soon()).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("generation 6 instead of 7"));
}

TEST(ShardStream, RefusesAServerWithAnotherName) {
  FakeServer server("server/s0",
                    [](const auto&, Responses*) { return grpc::Status::OK; });
  ShardStreamOptions options = OptionsFor(server, absl::Seconds(30));
  options.server = "server/s1";
  const absl::Status status = OpenShardStream(options).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("says that it is server/s0"));
}

// ---------------------------------------------------------------- streams that break

v1::ExchangeRequest Full(uint64_t step, uint32_t wave) {
  v1::ExchangeRequest request = Forward(step, wave);
  request.mutable_forward()->add_frames()->set_replica(2);
  request.mutable_forward()->mutable_frames(0)->set_x("rows");
  return request;
}

TEST(ShardStream, WhatHasNoAnswerIsSentAgainOnTheNextStream) {
  // Answers wave 0, breaks at wave 2; all is answered on the second stream.
  int broken = 0;
  FakeServer* fake = nullptr;
  FakeServer server("server/s0", [&](const auto& request, Responses* responses) {
    const uint32_t wave = request.forward().id().wave();
    if (broken == 0 && wave == 2) {
      ++broken;
      // It has the first two.
      fake->SetHello(1, 2);
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "cut");
    }
    if (broken > 0 || wave == 0) responses->push_back(AnswerTo(request));
    return grpc::Status::OK;
  });
  fake = &server;
  auto stream = OpenShardStream(OptionsFor(server, absl::Seconds(30)));
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Send(Full(3, 0)).ok());
  ASSERT_TRUE((*stream)->Await(KeyOf(Full(3, 0)), Soon()).ok());
  for (const uint32_t wave : {1, 2}) ASSERT_TRUE((*stream)->Send(Full(3, wave)).ok());
  for (const uint32_t wave : {1, 2}) {
    const auto response = (*stream)->Await(KeyOf(Full(3, wave)), Soon());
    ASSERT_TRUE(response.ok()) << response.status();
  }
  const auto requests = server.requests();
  ASSERT_EQ(requests.size(), 7u);  // hello, 0, 1, 2, hello, 1, 2
  EXPECT_EQ(requests[0].hello().sent(), 0u);
  EXPECT_EQ(requests[0].hello().incarnation(), 5u);
  EXPECT_EQ(requests[4].hello().sent(), 3u);
  EXPECT_EQ(requests[4].hello().incarnation(), 5u);
  EXPECT_EQ(requests[5].sequence(), 2u);
  EXPECT_EQ(requests[6].sequence(), 3u);
  EXPECT_EQ(requests[6].SerializeAsString(), requests[3].SerializeAsString());
  // Of what the server has only the name.
  EXPECT_EQ(requests[5].forward().frames(0).replica(), 2u);
  EXPECT_EQ(requests[5].forward().frames(0).x(), "");
}

TEST(ShardStream, SendsWhileThereIsNoStream) {
  // The first stream breaks at once, the second doesn't.
  std::atomic<int> messages = 0;
  FakeServer server("server/s0", [&](const auto& request, Responses* responses) {
    if (++messages == 1) return grpc::Status(grpc::StatusCode::CANCELLED, "");
    responses->push_back(AnswerTo(request));
    return grpc::Status::OK;
  });
  auto stream = OpenShardStream(OptionsFor(server, absl::Seconds(30)));
  ASSERT_TRUE(stream.ok()) << stream.status();
  for (uint64_t step = 1; step < 20; ++step) {
    ASSERT_TRUE((*stream)->Send(Forward(step)).ok());
  }
  for (uint64_t step = 1; step < 20; ++step) {
    EXPECT_TRUE((*stream)->Await(KeyOf(Forward(step)), Soon()).ok());
  }
}

TEST(ShardStream, AServerThatWasStartedAgainIsLost) {
  FakeServer* fake = nullptr;
  FakeServer server("server/s0", [&](const auto&, Responses*) {
    fake->SetHello(2, 0);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "cut");
  });
  fake = &server;
  auto stream = OpenShardStream(OptionsFor(server, absl::Seconds(30)));
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Send(Forward(1)).ok());
  const absl::Status lost = (*stream)->Await(KeyOf(Forward(1)), Soon()).status();
  EXPECT_EQ(lost.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(lost.message()),
              HasSubstr("has been started again (incarnation 2, not 1)"));
}

TEST(ShardStream, WithoutPatienceABreakIsTheEnd) {
  FakeServer server("server/s0", [&](const auto&, Responses*) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "cut");
  });
  ShardStreamOptions options = OptionsFor(server, absl::Seconds(30));
  options.reconnect_timeout = absl::ZeroDuration();
  auto stream = OpenShardStream(options);
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Send(Forward(1)).ok());
  const absl::Status lost = (*stream)->Await(KeyOf(Forward(1)), Soon()).status();
  EXPECT_EQ(lost.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(lost.message()), HasSubstr("broke"));
  EXPECT_EQ(server.requests().size(), 2u);
}

// Listens, and closes every connection.
class Door {
 public:
  Door() : listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    CHECK_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    CHECK_EQ(listen(listener_, 16), 0);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] {
      for (int fd; (fd = accept(listener_, nullptr, nullptr)) >= 0;) close(fd);
    });
  }
  ~Door() {
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    close(listener_);
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  int listener_;
  int port_ = 0;
  std::thread thread_;
};

TEST(ShardStream, GivesUpInTime) {
  const Door door;
  const absl::Time start = absl::Now();
  const absl::Status lost =
      OpenShardStream({.server = "server/s0",
                       .address = door.address(),
                       .member = "worker/w0",
                       .generation = kFakeGeneration,
                       .timeout = absl::Seconds(30),
                       .reconnect_timeout = absl::Milliseconds(300)})
          .status();
  EXPECT_EQ(lost.code(), absl::StatusCode::kUnavailable) << lost;
  EXPECT_THAT(std::string(lost.message()), HasSubstr("server/s0 at " + door.address()));
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(300));
}

TEST(ShardStream, AnAnswerThatComesTwiceCountsOnce) {
  FakeServer server("server/s0", [&](const auto& request, Responses* responses) {
    if (request.has_forward()) {
      responses->assign(3, AnswerTo(request));
      return grpc::Status::OK;
    }
    // Of pulls of one shard each has its own answer; the first one's comes once more.
    v1::PullResponse& pull = *responses->emplace_back().mutable_pull();
    pull.set_version(1);
    pull.add_shards()->set_shard("table/0");
    pull.set_sequence(request.sequence());
    pull.mutable_shards(0)->set_content(absl::StrCat(request.sequence()));
    if (request.sequence() > 3) {
      responses->insert(responses->begin(), responses->back());
      responses->front().mutable_pull()->set_sequence(3);
      responses->front().mutable_pull()->mutable_shards(0)->set_content("old");
    }
    return grpc::Status::OK;
  });
  auto stream = OpenShardStream(OptionsFor(server, absl::Seconds(30)));
  ASSERT_TRUE(stream.ok()) << stream.status();
  for (const uint64_t step : {1, 2}) {
    ASSERT_TRUE((*stream)->Send(Forward(step)).ok());
    EXPECT_TRUE((*stream)->Await(KeyOf(Forward(step)), Soon()).ok());
  }
  for (const char* content : {"3", "4"}) {
    v1::ExchangeRequest request;
    request.mutable_pull()->set_version(1);
    request.mutable_pull()->add_rows()->set_shard("table/0");
    const ExchangeKey key = KeyOf(request);
    ASSERT_TRUE((*stream)->Send(std::move(request)).ok());
    const auto response = (*stream)->Await(key, Soon());
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_EQ(response->message.pull().shards(0).content(), content);
  }
}

TEST(ShardStream, DescribesEveryKind) {
  v1::ExchangeRequest request;
  request.mutable_hello();
  EXPECT_EQ(Describe(KeyOf(request)), "hello");
  request.mutable_pull()->set_version(5);
  request.mutable_pull()->add_shards("dense/1");
  EXPECT_EQ(Describe(KeyOf(request)), "pull of dense/1 version 5");
  request.mutable_backward()->mutable_id()->set_step(4);
  EXPECT_EQ(Describe(KeyOf(request)), "backward step 4 wave 0 layer 0");
  request = Forward(6);
  request.mutable_forward()->mutable_id()->set_mode(v1::MODE_EVALUATE);
  EXPECT_EQ(Describe(KeyOf(request)), "forward evaluation batch 6 wave 0 layer 1");
  request.mutable_close()->set_step(7);
  EXPECT_EQ(Describe(KeyOf(request)), "close of step 7");
  request.mutable_apply()->set_step(8);
  EXPECT_EQ(Describe(KeyOf(request)), "apply of step 8");
}

}  // namespace
}  // namespace moe
