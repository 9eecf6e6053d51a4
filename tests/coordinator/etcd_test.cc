// The coordinator's store and its leadership on a real etcd.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/net/channel.h"
#include "proto/moe/v1/coordinator.grpc.pb.h"
#include "server/coordinator/candidate.h"
#include "server/coordinator/etcd_client.h"
#include "server/coordinator/etcd_store.h"
#include "server/coordinator/leadership.h"
#include "tests/coordinator/etcd_process.h"
#include "tests/net/raw_call.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Key;

constexpr absl::Duration kPatience = absl::Seconds(30);

class EtcdTest : public ::testing::Test {
 protected:
  EtcdTest()
      : folder_(
            absl::StrCat(testing::TempDir(), "/etcd_",
                         testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(folder_);
    etcd_ = std::make_unique<EtcdProcess>(folder_);
  }
  void SetUp() override {
    etcd_->Start();
    client_ = MakeClient();
  }
  std::unique_ptr<EtcdClient> MakeClient() {
    EtcdClient::Options options;
    options.endpoints = {etcd_->address()};
    options.attempt = absl::Milliseconds(500);
    options.on_data_loss = [this](const std::string& cause) { losses_.push_back(cause); };
    return std::make_unique<EtcdClient>(options);
  }
  Leadership::Options Options(const std::string& address) {
    Leadership::Options options;
    options.key = "job/leader";
    options.address = address;
    options.lease = absl::Seconds(2);
    options.on_deposed = [this](const std::string&) { deposed_.Notify(); };
    return options;
  }
  // Waits for it.
  std::unique_ptr<Leadership> Lead(EtcdClient& client, const std::string& address) {
    const absl::Time deadline = absl::Now() + kPatience;
    auto leadership = Leadership::Await(
        client, Options(address), [&](const std::string& leader) { seen_ = leader; },
        [&] { return absl::Now() > deadline; });
    EXPECT_TRUE(leadership.ok()) << leadership.status();
    return leadership.ok() ? *std::move(leadership) : nullptr;
  }
  std::unique_ptr<EtcdStore> MakeStore(const Leadership& leadership) {
    EtcdStore::Options options;
    options.prefix = "job";
    options.leader_key = "job/leader";
    options.leader_revision = leadership.revision();
    options.timeout = kPatience;
    options.on_deposed = [this](const std::string& cause) { told_ = cause; };
    return std::make_unique<EtcdStore>(*client_, options);
  }

  const std::string folder_;
  std::unique_ptr<EtcdProcess> etcd_;
  std::unique_ptr<EtcdClient> client_;
  absl::Notification deposed_;
  std::string seen_;
  std::string told_;
  std::vector<std::string> losses_;
};

TEST_F(EtcdTest, StoreComparesAndSwaps) {
  const auto leadership = Lead(*client_, "a:1");
  const auto store = MakeStore(*leadership);
  EXPECT_FALSE(store->Get("x")->has_value());
  EXPECT_EQ(store->CompareAndSwap("x", 0, "one").value(), 1);
  EXPECT_EQ(store->CompareAndSwap("x", 1, "two").value(), 2);
  for (const uint64_t version : {0, 1, 3}) {
    const absl::Status refused = store->CompareAndSwap("x", version, "four").status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kAborted);
    EXPECT_EQ(refused.message(),
              absl::StrCat("state key x has version 2, not ", version));
  }
  EXPECT_EQ((*store->Get("x"))->value, "two");
  EXPECT_EQ((*store->Get("x"))->version, 2);
  EXPECT_EQ(told_, "");
}

TEST_F(EtcdTest, ARepeatedWriteIsTheSameWrite) {
  const auto leadership = Lead(*client_, "a:1");
  const auto store = MakeStore(*leadership);
  ASSERT_TRUE(store->CompareAndSwap("x", 0, "one").ok());
  // As if its answer had been lost.
  EXPECT_EQ(store->CompareAndSwap("x", 0, "one").value(), 1);
}

TEST_F(EtcdTest, StoreListsItsOwnKeys) {
  const auto leadership = Lead(*client_, "a:1");
  const auto store = MakeStore(*leadership);
  for (const char* key : {"members/a", "members/b", "membes", "members"}) {
    ASSERT_TRUE(store->CompareAndSwap(key, 0, "value").ok());
  }
  EXPECT_THAT(*store->List("members/"), ElementsAre(Key("members/a"), Key("members/b")));
}

TEST_F(EtcdTest, OneLeadsAndTheNextWaitsForIt) {
  auto first = Lead(*client_, "a:1");
  EXPECT_TRUE(first->sure());
  const auto other = MakeClient();
  std::unique_ptr<Leadership> second;
  std::thread waiting([&] { second = Lead(*other, "b:2"); });
  absl::SleepFor(absl::Seconds(3));
  EXPECT_EQ(seen_, "a:1");
  EXPECT_TRUE(first->sure()) << "it keeps its lease alive";
  first.reset();
  waiting.join();
  ASSERT_NE(second, nullptr);
  EXPECT_TRUE(second->sure());
}

TEST_F(EtcdTest, WhoDoesNotLeadCannotWrite) {
  auto first = Lead(*client_, "a:1");
  const auto store = MakeStore(*first);
  ASSERT_TRUE(store->CompareAndSwap("x", 0, "of the first").ok());
  first.reset();
  absl::Status refused = store->CompareAndSwap("x", 1, "late").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(told_, "this coordinator doesn't lead any more: its lease is over");
  const auto second = Lead(*client_, "b:2");
  refused = store->CompareAndSwap("x", 1, "later").status();
  EXPECT_EQ(refused.message(), "this coordinator doesn't lead any more: b:2 does");
  EXPECT_EQ((*store->Get("x"))->value, "of the first");
}

TEST_F(EtcdTest, ALeaderOutlastsARestartOfEtcd) {
  const auto leadership = Lead(*client_, "a:1");
  const auto store = MakeStore(*leadership);
  ASSERT_TRUE(store->CompareAndSwap("x", 0, "one").ok());
  etcd_->Kill();
  std::thread writing(
      [&] { EXPECT_EQ(store->CompareAndSwap("x", 1, "two").value(), 2); });
  absl::SleepFor(absl::Seconds(3));
  EXPECT_FALSE(leadership->sure()) << "the lease may be over";
  etcd_->Start();
  writing.join();
  for (const absl::Time end = absl::Now() + kPatience;
       !leadership->sure() && absl::Now() < end;) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_TRUE(leadership->sure());
  EXPECT_FALSE(deposed_.HasBeenNotified());
}

TEST_F(EtcdTest, NobodyWaitsForTheLeaseOfOneThatResigns) {
  Leadership::Options options = Options("a:1");
  options.lease = 2 * kPatience;
  const auto leadership = Leadership::Await(
      *client_, options, [](const std::string&) {}, [] { return false; });
  ASSERT_TRUE(leadership.ok()) << leadership.status();
  const auto store = MakeStore(**leadership);
  (*leadership)->Resign();
  EXPECT_FALSE((*leadership)->sure());
  const auto next = Lead(*client_, "b:1");
  (*leadership)->Resign();
  EXPECT_TRUE(next->sure());
  EXPECT_FALSE(deposed_.HasBeenNotified());
  EXPECT_EQ(store->CompareAndSwap("x", 0, "one").status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(EtcdTest, AStandbyAnswersThatItIsOne) {
  Candidate::Options options;
  options.etcd.endpoints = {etcd_->address()};
  options.prefix = "job";
  options.listen = "127.0.0.1:0";
  options.lease = absl::Seconds(2);
  auto leader = Candidate::Await(options);
  ASSERT_TRUE(leader.ok()) << leader.status();
  EXPECT_FALSE((*leader)->was_standby());
  EXPECT_EQ((*leader)->store().CompareAndSwap("x", 0, "one").value(), 1);

  const std::string told = "standby; the leader is " + (*leader)->address();
  absl::Notification standing_by;
  std::string address;
  options.listening = [&](const std::string& listening) { address = listening; };
  options.print = [&](const std::string& line) {
    if (line == told) standing_by.Notify();
  };
  absl::StatusOr<std::unique_ptr<Candidate>> next;
  std::thread waiting([&] { next = Candidate::Await(options); });
  EXPECT_TRUE(standing_by.WaitForNotificationWithTimeout(kPatience));
  const auto stub = v1::CoordinatorService::NewStub(MakeChannel(address));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  v1::HeartbeatResponse response;
  const grpc::Status status = stub->Heartbeat(&context, {}, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), told);
  EXPECT_EQ(CheckHealth(MakeChannel(address)).value(), kServing);
  EXPECT_EQ(CheckHealth(MakeChannel(address), "moe.v1.CoordinatorService").value(),
            kNotServing);
  leader->reset();
  waiting.join();
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_TRUE((*next)->was_standby());
  EXPECT_EQ((*(*next)->store().Get("x"))->value, "one");
  EXPECT_EQ((*next)->address(), address);
}

TEST_F(EtcdTest, AStandbyCanBeToldToStop) {
  const auto leader = Lead(*client_, "a:1");
  Candidate::Options options;
  options.etcd.endpoints = {etcd_->address()};
  options.prefix = "job";
  options.listen = "127.0.0.1:0";
  int asked = 0;
  options.cancelled = [&] { return ++asked == 3; };
  EXPECT_EQ(Candidate::Await(options).status().code(), absl::StatusCode::kCancelled);
}

TEST_F(EtcdTest, LostDataIsSaid) {
  auto leadership = Lead(*client_, "a:1");
  const auto store = MakeStore(*leadership);
  ASSERT_TRUE(store->CompareAndSwap("x", 0, "one").ok());
  etcd_->Kill();
  etcd_->LoseData();
  etcd_->Start();
  const absl::Status status = store->Get("x").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("has lost data: its revision has gone back from"));
  ASSERT_FALSE(losses_.empty());
  EXPECT_TRUE(deposed_.WaitForNotificationWithTimeout(kPatience))
      << "the lease isn't there any more";
}

TEST_F(EtcdTest, NobodyThere) {
  etcd_->Kill();
  etcdserverpb::RangeRequest request;
  request.set_key("x");
  const absl::Status status =
      client_->Range(request, absl::Now() + absl::Milliseconds(300)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("etcd at " + etcd_->address() + " has not answered for"));
}

TEST(EtcdAddressTest, Parses) {
  const auto address = ParseEtcdAddress("etcd://a:1,b:2/jobs/kjv/");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_THAT(address->endpoints, ElementsAre("a:1", "b:2"));
  EXPECT_EQ(address->prefix, "jobs/kjv");
  for (const char* bad : {"a:1/jobs", "etcd://a:1", "etcd://a:1/", "etcd:///jobs",
                          "etcd://a/jobs", "etcd://a:1,/jobs"}) {
    EXPECT_THAT(std::string(ParseEtcdAddress(bad).status().message()),
                HasSubstr("isn't of the form etcd://host:port"))
        << bad;
  }
}

}  // namespace
}  // namespace moe
