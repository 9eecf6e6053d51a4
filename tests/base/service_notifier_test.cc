#include "common/base/service_notifier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/synchronization/notification.h"

namespace moe {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// A service manager's socket.
class ServiceNotifierTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/notify-XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    folder_ = folder;
    path_ = folder_ + "/socket";
    fd_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ASSERT_GE(fd_, 0);
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path_.c_str());
    ASSERT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    setenv("NOTIFY_SOCKET", path_.c_str(), 1);
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
  }
  void TearDown() override {
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    close(fd_);
    unlink(path_.c_str());
    rmdir(folder_.c_str());
  }

  // The next message; empty after so many milliseconds without one.
  std::string Next(int patience = 20000) {
    pollfd ready = {fd_, POLLIN, 0};
    if (poll(&ready, 1, patience) != 1) return "";
    char buffer[4096];
    const ssize_t size = recv(fd_, buffer, sizeof(buffer), 0);
    return size < 0 ? "" : std::string(buffer, size);
  }

  std::string folder_, path_;
  int fd_ = -1;
};

TEST_F(ServiceNotifierTest, SaysWhatTheProcessDoesAndThatItIsReady) {
  ServiceNotifier notifier([] { return "joins\nsomebody"; });
  EXPECT_EQ(Next(), "STATUS=joins somebody\n");
  notifier.Ready();
  EXPECT_EQ(Next(), "READY=1\n");
  notifier.Ready();
  notifier.Stopping();
  EXPECT_EQ(Next(), "STOPPING=1\n");
}

TEST_F(ServiceNotifierTest, SaysWhatIsNew) {
  std::atomic<int> step = 1;
  ServiceNotifier notifier([&] { return "step " + std::to_string(step); });
  EXPECT_EQ(Next(), "STATUS=step 1\n");
  step = 2;
  EXPECT_EQ(Next(), "STATUS=step 2\n");
}

TEST_F(ServiceNotifierTest, StopSendsWhatWasSaid) {
  int calls = 0;
  {
    ServiceNotifier notifier([&] { return "call " + std::to_string(++calls); });
    Next();
    notifier.Ready();
    notifier.Stopping();
  }
  std::string all;
  for (std::string next = Next(0); !next.empty(); next = Next(0)) all += next;
  EXPECT_THAT(all, HasSubstr("READY=1\n"));
  EXPECT_THAT(all, HasSubstr("STOPPING=1\n"));
}

TEST_F(ServiceNotifierTest, NoSignOfLifeUnlessAskedFor) {
  ServiceNotifier notifier([] { return "works"; });
  EXPECT_EQ(Next(), "STATUS=works\n");
  EXPECT_THAT(Next(1500), IsEmpty());
}

TEST_F(ServiceNotifierTest, SignsOfLifeEndWhenTheProcessCannotSayWhatItDoes) {
  setenv("WATCHDOG_USEC", "20000", 1);
  std::atomic<bool> hangs = false;
  absl::Notification goes_on;
  ServiceNotifier notifier([&] {
    if (hangs) goes_on.WaitForNotification();
    return "works";
  });
  for (int i = 0; i < 5; ++i) EXPECT_THAT(Next(), HasSubstr("WATCHDOG=1\n"));
  hangs = true;
  // Those under way.
  while (!Next(200).empty()) continue;
  EXPECT_THAT(Next(500), Not(HasSubstr("WATCHDOG")));
  goes_on.Notify();
  hangs = false;
  EXPECT_EQ(Next(), "WATCHDOG=1\n");
}

TEST_F(ServiceNotifierTest, AManagerThatTakesNothingHoldsNobodyUp) {
  int calls = 0;
  // As many messages as its socket takes, and more.
  setenv("WATCHDOG_USEC", "2", 1);
  ServiceNotifier notifier([&] { return "call " + std::to_string(++calls); });
  poll(nullptr, 0, 1500);
  notifier.Ready();
  notifier.Stop();
  SUCCEED();
}

TEST_F(ServiceNotifierTest, NothingWithoutAManager) {
  unsetenv("NOTIFY_SOCKET");
  std::atomic<int> calls = 0;
  {
    ServiceNotifier notifier([&] { return "call " + std::to_string(++calls); });
    notifier.Ready();
    notifier.Stopping();
    EXPECT_THAT(Next(300), IsEmpty());
  }
  EXPECT_EQ(calls, 0);
}

TEST_F(ServiceNotifierTest, AManagerThatIsGoneIsNoFailure) {
  setenv("NOTIFY_SOCKET", (folder_ + "/nobody").c_str(), 1);
  ServiceNotifier notifier([] { return "works"; });
  notifier.Ready();
  notifier.Stop();
}

}  // namespace
}  // namespace moe
