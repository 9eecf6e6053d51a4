// A whole server, talked to over gRPC; the coordinator is the test.
#include "server/expert_server.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/protocol.h"
#include "common/net/channel.h"
#include "common/net/checksum.h"
#include "common/net/introduction.h"
#include "proto/moe/v1/expert.grpc.pb.h"
#include "proto/moe/v1/status.grpc.pb.h"
#include "tests/server/fake_member.h"
#include "tests/server/made_step.h"

namespace moe {
namespace {

using ::testing::HasSubstr;
using testing::kWaves;
using ::testing::StartsWith;
using testing::Workers;

// One worker's stream.
class Conversation {
 public:
  explicit Conversation(ExpertServer& server, const std::string& worker = "worker/w0",
                        uint64_t nonce = 0)
      : stub_(v1::ShardService::NewStub(MakeChannel(server.address()))) {
    Introduce({.member = worker, .nonce = nonce}, &context_);
    stream_ = stub_->Exchange(&context_);
  }
  ~Conversation() {
    if (stream_ != nullptr) End();
  }

  bool Hello(const std::string& worker, int32_t version = kProtocolVersion,
             uint64_t generation = 1) {
    return Return(worker, /*sent=*/0, kIncarnation, version, generation).ok();
  }
  // Says Hello after having sent so much on other streams; how much of that the server has.
  absl::StatusOr<uint64_t> Return(const std::string& worker, uint64_t sent,
                                  uint64_t incarnation = kIncarnation,
                                  int32_t version = kProtocolVersion,
                                  uint64_t generation = 1) {
    v1::ExchangeRequest request;
    request.set_generation(generation);
    request.mutable_hello()->set_member(worker);
    request.mutable_hello()->set_protocol_version(version);
    request.mutable_hello()->set_incarnation(incarnation);
    request.mutable_hello()->set_sent(sent);
    Seal(&request);
    SendAsItIs(request);
    sequence_ = sent;
    const v1::ExchangeResponse response = Next();
    if (!response.has_hello()) {
      if (!response.has_failure()) return absl::UnavailableError("the stream ended");
      return absl::Status(static_cast<absl::StatusCode>(response.failure().code()),
                          response.failure().message());
    }
    EXPECT_EQ(response.hello().incarnation(), testing::kFakeIncarnation);
    return response.hello().received();
  }
  bool Send(const v1::ExchangeRequest& request) { return SendAs(++sequence_, request); }
  bool SendAs(uint64_t sequence, v1::ExchangeRequest request) {
    request.set_sequence(sequence);
    Seal(&request);
    return SendAsItIs(request);
  }
  bool SendAsItIs(const v1::ExchangeRequest& request) { return stream_->Write(request); }
  uint64_t sequence() const { return sequence_; }
  // Empty when the stream has ended.
  v1::ExchangeResponse Next() {
    v1::ExchangeResponse response;
    if (!stream_->Read(&response)) {
      response.Clear();
    } else {
      EXPECT_TRUE(CheckSeal(response).ok()) << response.DebugString();
    }
    return response;
  }
  grpc::Status End() {
    stream_->WritesDone();
    while (Next().message_case() != v1::ExchangeResponse::MESSAGE_NOT_SET) {
    }
    const grpc::Status status = stream_->Finish();
    stream_ = nullptr;
    return status;
  }
  void Break() { context_.TryCancel(); }

 private:
  static constexpr uint64_t kIncarnation = 4;

  uint64_t sequence_ = 0;
  grpc::ClientContext context_;
  std::unique_ptr<v1::ShardService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ExchangeRequest, v1::ExchangeResponse>>
      stream_;
};

class ExpertServerTest : public ::testing::Test {
 protected:
  void Start(v1::ClusterState state,
             absl::Duration reconnect_timeout = absl::Seconds(20)) {
    plan_ = MakeModelPlan(state.job());
    ExpertServer::Options options;
    options.name = "s0";
    options.threads = 2;
    options.reconnect_timeout = reconnect_timeout;
    options.join = [this](const Member::Options& member) {
      return std::make_unique<testing::FakeMember>(&cluster_, member);
    };
    absl::StatusOr<std::unique_ptr<ExpertServer>> server =
        ExpertServer::Start(std::move(options));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    state_ = std::move(state);
    cluster_.SetState(state_);
    cluster_.AwaitReady(1);
  }
  void SetPhase(v1::Phase phase, const std::string& failure = "") {
    state_.set_phase(phase);
    state_.set_failure(failure);
    cluster_.SetState(state_);
  }

  void Connect() {
    for (const auto& [worker, replicas] : Workers()) {
      workers_[worker] = std::make_unique<Conversation>(*server_, worker);
      ASSERT_TRUE(workers_[worker]->Hello(worker));
    }
  }
  template <typename Make>
  void SendAll(const Make& make) {
    for (const auto& [worker, replicas] : Workers()) {
      workers_[worker]->Send(make(replicas));
    }
  }
  // Ends with the close's answers unread.
  void Step(uint64_t step, bool cut = false) {
    for (uint32_t w = 0; w < kWaves; ++w) {
      SendAll(
          [&](const auto& replicas) { return testing::ForwardOf(step, w, replicas); });
    }
    for (const auto& [worker, replicas] : Workers()) {
      for (uint32_t w = 0; w < kWaves; ++w) {
        ASSERT_TRUE(workers_[worker]->Next().has_forward());
      }
    }
    for (uint32_t w = 0; w < kWaves; ++w) {
      SendAll(
          [&](const auto& replicas) { return testing::BackwardOf(step, w, replicas); });
    }
    for (const auto& [worker, replicas] : Workers()) {
      for (uint32_t w = 0; w < kWaves; ++w) {
        ASSERT_TRUE(workers_[worker]->Next().has_backward());
      }
    }
    SendAll([&](const auto& replicas) {
      return testing::CloseOf(plan_, step, replicas, cut);
    });
  }

  // The first message of worker/w0, with one bit changed since it was sealed.
  static v1::ExchangeRequest Damaged() {
    v1::ExchangeRequest request = testing::ForwardOf(0, 0, {0, 1});
    request.set_sequence(1);
    Seal(&request);
    std::string* const x = request.mutable_forward()->mutable_frames(1)->mutable_x();
    (*x)[x->size() / 2] ^= 4;
    return request;
  }

  std::string Digests() {
    const auto stub = v1::ServerStatusService::NewStub(server_->rpc().InProcessChannel());
    grpc::ClientContext context;
    v1::GetTensorDigestsResponse digests;
    EXPECT_TRUE(stub->GetTensorDigests(&context, {}, &digests).ok());
    return digests.DebugString();
  }

  testing::FakeCluster cluster_;
  v1::ClusterState state_;
  ModelPlan plan_;
  std::unique_ptr<ExpertServer> server_;
  std::map<std::string, std::unique_ptr<Conversation>> workers_;
};

TEST_F(ExpertServerTest, ServesAJobToItsEnd) {
  const std::string folder = ::testing::TempDir() + "/expert_server_cut";
  std::filesystem::remove_all(folder);
  v1::ClusterState state = testing::MadeState(testing::MadeJob());
  state.set_checkpoint_dir(folder);
  Start(state);
  EXPECT_EQ(cluster_.registration().address(), server_->address());
  EXPECT_EQ(cluster_.registration().kind(), v1::MEMBER_KIND_SERVER);
  EXPECT_FALSE(cluster_.registration().numerics().empty());
  SetPhase(v1::PHASE_RUNNING);
  Connect();
  Step(0);
  for (auto& [worker, stream] : workers_) EXPECT_EQ(stream->Next().close().version(), 1u);
  Step(1, /*cut=*/true);
  for (auto& [worker, stream] : workers_) EXPECT_EQ(stream->Next().close().version(), 2u);
  cluster_.AwaitFiles(plan_.shards.size());
  EXPECT_EQ(cluster_.files()[0].step(), 2u);

  const auto stub = v1::ServerStatusService::NewStub(server_->rpc().InProcessChannel());
  {
    grpc::ClientContext context;
    v1::GetServerStatusResponse status;
    ASSERT_TRUE(stub->GetServerStatus(&context, {}, &status).ok());
    EXPECT_EQ(status.server(), "server/s0");
    EXPECT_EQ(status.shards_size(), static_cast<int>(plan_.shards.size()));
  }
  {
    grpc::ClientContext context;
    v1::GetTensorDigestsResponse digests;
    ASSERT_TRUE(stub->GetTensorDigests(&context, {}, &digests).ok());
    EXPECT_EQ(digests.version(), 2u);
    // The expert without rows has none.
    uint64_t untouched = 0;
    for (const v1::UntouchedTensors& range : digests.untouched()) {
      untouched += range.count();
    }
    EXPECT_EQ(untouched, 2u);
    EXPECT_EQ(digests.tensors_size() + untouched, plan_.tensors.size());
  }

  for (auto& [worker, stream] : workers_) EXPECT_TRUE(stream->End().ok());
  SetPhase(v1::PHASE_FINISHED);
  EXPECT_TRUE(server_->Wait().ok());
  EXPECT_THAT(cluster_.failures(), ::testing::IsEmpty());
}

TEST_F(ExpertServerTest, ServesTheNextGeneration) {
  Start(testing::MadeState(testing::MadeJob()));
  SetPhase(v1::PHASE_RUNNING);
  Connect();
  Step(0);
  for (auto& [worker, stream] : workers_) EXPECT_EQ(stream->Next().close().version(), 1u);
  state_.set_generation(2);
  state_.set_recovery("worker/w9 was lost");
  SetPhase(v1::PHASE_WAITING);
  // Streams are cut, though their workers still hold them.
  for (auto& [worker, stream] : workers_) {
    while (stream->Next().message_case() != v1::ExchangeResponse::MESSAGE_NOT_SET) {
    }
    EXPECT_FALSE(stream->End().ok());
  }
  SetPhase(v1::PHASE_LOADING);
  cluster_.AwaitReady(2);
  SetPhase(v1::PHASE_RUNNING);
  Conversation stream(*server_);
  ASSERT_TRUE(stream.Hello("worker/w0", kProtocolVersion, 2));
  v1::ExchangeRequest pull = testing::PullOf({"dense/0"}, 0);
  pull.set_generation(2);
  stream.Send(pull);
  EXPECT_EQ(stream.Next().pull().version(), 0u) << "what step 0 did is gone";
  Conversation late(*server_, "worker/w1");
  EXPECT_FALSE(late.Hello("worker/w1"));
  EXPECT_THAT(late.End().error_message(), HasSubstr("in generation 1"));
  EXPECT_THAT(cluster_.failures(), ::testing::IsEmpty());
}

TEST_F(ExpertServerTest, WantsAGreetingFirst) {
  Start(testing::MadeState(testing::MadeJob()));
  const auto refusal = [&](auto&& talk) {
    Conversation stream(*server_);
    talk(stream);
    return stream.End().error_message();
  };
  EXPECT_THAT(refusal([](Conversation& s) { s.Send(testing::PullOf({"dense/0"}, 0)); }),
              HasSubstr("the first message must be Hello"));
  EXPECT_THAT(
      refusal([](Conversation& s) { EXPECT_FALSE(s.Hello("worker/w0", 99)); }),
      HasSubstr(absl::StrCat("worker/w0 speaks protocol version 99; this server speaks ",
                             kProtocolVersion)));
  EXPECT_THAT(refusal([](Conversation& s) {
                EXPECT_FALSE(s.Hello("worker/w0", kProtocolVersion, 3));
              }),
              HasSubstr("worker/w0 is in generation 3; the current one is 1"));
  EXPECT_THAT(refusal([](Conversation& s) { EXPECT_FALSE(s.Hello("worker/w1")); }),
              HasSubstr("the caller is worker/w0, not worker/w1"));
  EXPECT_THAT(refusal([](Conversation& s) { s.SendAsItIs(testing::PullOf({}, 0)); }),
              HasSubstr("a message was damaged on its way"));
  // None of them matters to the job.
  EXPECT_THAT(cluster_.failures(), ::testing::IsEmpty());
}

TEST_F(ExpertServerTest, AStrangerSpeaksForNobody) {
  v1::ClusterState state = testing::MadeState(testing::MadeJob());
  for (v1::ReplicaAssignment& replica : *state.mutable_replicas()) replica.set_nonce(12);
  Start(state);
  for (const uint64_t nonce : {0, 11}) {
    Conversation stream(*server_, "worker/w0", nonce);
    EXPECT_FALSE(stream.Hello("worker/w0"));
    EXPECT_THAT(stream.End().error_message(), HasSubstr("isn't worker/w0, as it says"));
  }
  // Before it has said a word.
  for (const std::string name : {"worker/w7", "", " "}) {
    Conversation stream(*server_, name, 12);
    EXPECT_EQ(stream.Next().message_case(), v1::ExchangeResponse::MESSAGE_NOT_SET);
    EXPECT_THAT(stream.End().error_message(),
                HasSubstr("\"" + name + "\" has no replica of this job"));
  }
  Conversation stream(*server_, "worker/w0", 12);
  EXPECT_TRUE(stream.Hello("worker/w0"));
  EXPECT_THAT(cluster_.failures(), ::testing::IsEmpty());
}

TEST_F(ExpertServerTest, ADamagedMessageIsABrokenStream) {
  Start(testing::MadeState(testing::MadeJob()), absl::Milliseconds(50));
  Connect();
  workers_["worker/w0"]->SendAsItIs(Damaged());
  EXPECT_THAT(cluster_.AwaitFailure(), HasSubstr("the stream of worker/w0 broke"));
  EXPECT_EQ(workers_["worker/w1"]->Next().failure().code(),
            static_cast<int>(absl::StatusCode::kUnavailable));
}

TEST_F(ExpertServerTest, ADamagedMessageMayComeAgain) {
  Start(testing::MadeState(testing::MadeJob()));
  Connect();
  workers_["worker/w0"]->SendAsItIs(Damaged());
  EXPECT_FALSE(workers_["worker/w0"]->End().ok());
  workers_["worker/w0"] = std::make_unique<Conversation>(*server_, "worker/w0");
  const absl::StatusOr<uint64_t> received =
      workers_["worker/w0"]->Return("worker/w0", /*sent=*/1);
  ASSERT_TRUE(received.ok()) << received.status();
  EXPECT_EQ(*received, 0u);
  workers_["worker/w0"]->SendAs(1, testing::ForwardOf(0, 0, {0, 1}));
  workers_["worker/w1"]->Send(testing::ForwardOf(0, 0, Workers().at("worker/w1")));
  for (auto& [worker, stream] : workers_) EXPECT_TRUE(stream->Next().has_forward());
  EXPECT_THAT(cluster_.failures(), ::testing::IsEmpty());
}

TEST_F(ExpertServerTest, ABadMessageFailsTheJob) {
  Start(testing::MadeState(testing::MadeJob()));
  Connect();
  workers_["worker/w0"]->Send(testing::PullOf({"dense/9"}, 0));
  const v1::ExchangeResponse response = workers_["worker/w0"]->Next();
  EXPECT_EQ(response.failure().code(),
            static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(response.failure().message(),
              HasSubstr("no dense or replica shard dense/9"));
  const std::string cause = cluster_.AwaitFailure();
  EXPECT_THAT(cause,
              StartsWith("server/s0: pull of worker/w0: no dense or replica shard"));
  EXPECT_THAT(workers_["worker/w1"]->Next().failure().message(), HasSubstr("dense/9"));
  SetPhase(v1::PHASE_FAILED, cause);
  EXPECT_EQ(server_->Wait().message(), cause);
}

TEST_F(ExpertServerTest, AStaleMessageDoesNotFailTheJob) {
  Start(testing::MadeState(testing::MadeJob()));
  Connect();
  v1::ExchangeRequest request = testing::PullOf({"dense/0"}, 0);
  request.set_generation(0);
  workers_["worker/w0"]->Send(request);
  EXPECT_THAT(workers_["worker/w0"]->End().error_message(),
              HasSubstr("of generation 0; the current one is 1"));
  EXPECT_THAT(cluster_.failures(), ::testing::IsEmpty());
}

TEST_F(ExpertServerTest, ABrokenStreamThatNobodyTakesUpFailsTheJob) {
  for (const absl::Duration patience : {absl::ZeroDuration(), absl::Milliseconds(50)}) {
    workers_.clear();
    server_ = nullptr;
    cluster_.Reset();
    Start(testing::MadeState(testing::MadeJob()), patience);
    Connect();
    workers_["worker/w1"]->Break();
    EXPECT_THAT(cluster_.AwaitFailure(), HasSubstr("the stream of worker/w1 broke"));
    SetPhase(v1::PHASE_FAILED, "because of w1");
    EXPECT_EQ(server_->Wait().message(), "because of w1");
  }
}

TEST_F(ExpertServerTest, AStreamIsTakenUpAndWhatComesAgainCountsOnce) {
  Start(testing::MadeState(testing::MadeJob()));
  Connect();
  Step(0);
  for (auto& [worker, stream] : workers_) EXPECT_EQ(stream->Next().close().version(), 1u);
  const std::string once = Digests();

  workers_.clear();
  server_ = nullptr;
  cluster_.Reset();
  Start(testing::MadeState(testing::MadeJob()));
  Connect();
  // Each message of worker/w1 on a stream of its own, which breaks before the answer is read, and then
  // once more.
  const std::string w1 = "worker/w1";
  const auto broken = [&](const v1::ExchangeRequest& request) {
    const uint64_t sequence = workers_[w1]->sequence() + 1;
    workers_[w1]->Send(request);
    workers_[w1]->Break();
    workers_[w1] = std::make_unique<Conversation>(*server_, w1);
    const absl::StatusOr<uint64_t> received = workers_[w1]->Return(w1, sequence);
    ASSERT_TRUE(received.ok()) << received.status();
    // It may have broken before it was read.
    EXPECT_TRUE(*received == sequence || *received == sequence - 1) << *received;
    workers_[w1]->SendAs(sequence, request);
  };
  // Its answer, passing over those that were asked for twice.
  const auto await = [&](v1::ExchangeResponse::MessageCase kind) {
    while (true) {
      const v1::ExchangeResponse response = workers_[w1]->Next();
      ASSERT_NE(response.message_case(), v1::ExchangeResponse::MESSAGE_NOT_SET);
      ASSERT_FALSE(response.has_failure()) << response.failure().message();
      if (response.message_case() == kind) return;
    }
  };
  Conversation& other = *workers_["worker/w0"];
  for (uint32_t w = 0; w < kWaves; ++w) {
    broken(testing::ForwardOf(0, w, {2}));
    other.Send(testing::ForwardOf(0, w, {0, 1}));
    EXPECT_TRUE(other.Next().has_forward());
    await(v1::ExchangeResponse::kForward);
  }
  for (uint32_t w = 0; w < kWaves; ++w) {
    other.Send(testing::BackwardOf(0, w, {0, 1}));
    broken(testing::BackwardOf(0, w, {2}));
    EXPECT_TRUE(other.Next().has_backward());
    await(v1::ExchangeResponse::kBackward);
  }
  other.Send(testing::CloseOf(plan_, 0, {0, 1}));
  broken(testing::CloseOf(plan_, 0, {2}));
  EXPECT_EQ(other.Next().close().version(), 1u);
  await(v1::ExchangeResponse::kClose);
  // The step is over; what comes again of it is ignored.
  broken(testing::PullOf({"dense/0"}, 1));
  await(v1::ExchangeResponse::kPull);
  workers_[w1]->SendAs(1, testing::ForwardOf(0, 0, {2}));
  workers_[w1]->SendAs(kWaves + 1, testing::BackwardOf(0, 0, {2}));
  workers_[w1]->SendAs(2 * kWaves + 1, testing::CloseOf(plan_, 0, {2}));
  await(v1::ExchangeResponse::kClose);
  EXPECT_EQ(Digests(), once);
  EXPECT_THAT(cluster_.failures(), ::testing::IsEmpty());
}

TEST_F(ExpertServerTest, MessagesAreTakenInTheirOrder) {
  Start(testing::MadeState(testing::MadeJob()));
  Connect();
  Conversation& stream = *workers_["worker/w1"];
  workers_["worker/w0"]->Send(testing::ForwardOf(0, 0, {0, 1}));
  workers_["worker/w0"]->Send(testing::ForwardOf(0, 1, {0, 1}));
  stream.SendAs(2, testing::ForwardOf(0, 1, {2}));
  stream.SendAs(2, testing::ForwardOf(0, 1, {2}));
  stream.SendAs(1, testing::ForwardOf(0, 0, {2}));
  for (uint32_t w = 0; w < kWaves; ++w) {
    EXPECT_EQ(stream.Next().forward().id().wave(), w);
  }
  EXPECT_THAT(cluster_.failures(), ::testing::IsEmpty());
  stream.SendAs(1000, testing::PullOf({"dense/0"}, 0));
  EXPECT_THAT(stream.Next().failure().message(),
              HasSubstr("worker/w1 sent message 1000 before message 3"));
}

TEST_F(ExpertServerTest, OnlyWhoBeganMayTakeUpAStream) {
  Start(testing::MadeState(testing::MadeJob()));
  Connect();
  const auto returned = [&](uint64_t sent, uint64_t incarnation) {
    Conversation stream(*server_, "worker/w1");
    return std::string(stream.Return("worker/w1", sent, incarnation).status().message());
  };
  workers_["worker/w1"]->Send(testing::PullOf({"dense/0"}, 0));
  EXPECT_TRUE(workers_["worker/w1"]->Next().has_pull());
  EXPECT_THAT(returned(1, 3),
              HasSubstr("is incarnation 3, but the generation began with incarnation 4"));
  EXPECT_THAT(returned(0, 4), HasSubstr("knows of 0 messages that it sent, but 1 came"));
  // None of them cuts the stream that there is.
  workers_["worker/w1"]->Send(testing::PullOf({"dense/0"}, 0));
  EXPECT_TRUE(workers_["worker/w1"]->Next().has_pull());
  EXPECT_THAT(cluster_.failures(), ::testing::IsEmpty());
}

TEST_F(ExpertServerTest, AServerThatHasForgottenSaysSo) {
  Start(testing::MadeState(testing::MadeJob()));
  Conversation stream(*server_, "worker/w1");
  const absl::Status status = stream.Return("worker/w1", 7).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("knows nothing of the 7 messages"));
}

TEST_F(ExpertServerTest, AFailedCutFailsTheJob) {
  v1::ClusterState state = testing::MadeState(testing::MadeJob());
  state.set_checkpoint_dir("/proc/nowhere");
  Start(state);
  Connect();
  Step(0, /*cut=*/true);
  const std::string cause = cluster_.AwaitFailure();
  EXPECT_THAT(cause, HasSubstr("/proc/nowhere"));
  // Named once: whoever reads an answer knows whose it is.
  v1::ExchangeResponse told = workers_["worker/w0"]->Next();
  if (!told.has_failure()) told = workers_["worker/w0"]->Next();
  EXPECT_EQ(cause, "server/s0: " + told.failure().message());
}

TEST_F(ExpertServerTest, AFailedLoadFailsTheJob) {
  v1::ClusterState state = testing::MadeState(testing::MadeJob());
  state.set_restore_from("/nowhere");
  Start(state);
  EXPECT_THAT(cluster_.AwaitFailure(),
              ::testing::AllOf(HasSubstr("server/s0 can't load its shards: "),
                               HasSubstr("/nowhere/manifest.json")));
  EXPECT_FALSE(server_->Wait().ok());
}

TEST_F(ExpertServerTest, StopsWhenTold) {
  Start(testing::MadeState(testing::MadeJob()));
  Connect();
  auto told =
      std::async(std::launch::async, [&] { return workers_["worker/w0"]->Next(); });
  server_->Stop();
  EXPECT_EQ(server_->Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(told.get().has_failure());
}

// Answers to a peer that doesn't read them would pile up without end.
TEST_F(ExpertServerTest, WhoAsksAndDoesNotReadIsRefused) {
  Start(testing::MadeState(testing::MadeJob()));
  Connect();
  SendAll([&](const auto& replicas) { return testing::ForwardOf(0, 0, replicas); });
  ASSERT_TRUE(workers_["worker/w0"]->Next().has_forward());
  // A repeated frame is answered at once.
  const v1::ExchangeRequest again = testing::ForwardOf(0, 0, Workers().at("worker/w1"));
  auto sender = std::async(std::launch::async, [&] {
    int sent = 0;
    while (sent < 1'000'000 && workers_["worker/w1"]->Send(again)) ++sent;
    return sent;
  });
  EXPECT_THAT(cluster_.AwaitFailure(),
              ::testing::AllOf(HasSubstr("worker/w1: asks on though more than "),
                               HasSubstr(" wait to be read")));
  // What was on its way comes, then the cause.
  v1::ExchangeResponse response;
  int read = 0;
  do {
    response = workers_["worker/w1"]->Next();
    ++read;
  } while (response.has_forward());
  EXPECT_EQ(response.failure().code(),
            static_cast<int>(absl::StatusCode::kResourceExhausted));
  const int sent = sender.get();
  EXPECT_LT(sent, 1'000'000);
  EXPECT_LT(read, sent);
}

TEST_F(ExpertServerTest, ATakenPortIsAnError) {
  Start(testing::MadeState(testing::MadeJob()));
  ExpertServer::Options options;
  options.name = "s1";
  options.listen = server_->address();
  EXPECT_THAT(ExpertServer::Start(std::move(options)).status().message(),
              HasSubstr(server_->address()));
}

}  // namespace
}  // namespace moe
