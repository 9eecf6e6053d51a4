#include "common/base/signals.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"

namespace moe {
namespace {

// Runs fn in a child process and returns its wait status.
int InChild(const std::function<void()>& fn) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // a hanging child fails the test
    fn();
    _exit(99);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status;
}

int ExitCode(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : -1; }

void ExitCleanlyAfter(int signal_to_send) {
  BlockTerminationSignals();
  absl::Notification done;
  int seen = 0;
  TerminationHandler handler([&](int signal) {
    seen = signal;
    done.Notify();
  });
  kill(getpid(), signal_to_send);
  done.WaitForNotification();
  _exit(seen == signal_to_send ? 7 : 8);
}

TEST(TerminationHandlerTest, RunsTheCallbackOnTheFirstSignal) {
  EXPECT_EQ(ExitCode(InChild([] { ExitCleanlyAfter(SIGTERM); })), 7);
  EXPECT_EQ(ExitCode(InChild([] { ExitCleanlyAfter(SIGINT); })), 7);
}

TEST(TerminationHandlerTest, SecondSignalEndsAProcessThatHangs) {
  const int status = InChild([] {
    BlockTerminationSignals();
    absl::Notification running, never;
    TerminationHandler handler([&](int) {
      running.Notify();
      never.WaitForNotification();
    });
    kill(getpid(), SIGTERM);
    running.WaitForNotification();
    kill(getpid(), SIGINT);
    never.WaitForNotification();
  });
  EXPECT_EQ(ExitCode(status), 128 + SIGINT);
}

TEST(TerminationHandlerTest, SecondSignalWorksWhileTheDestructorWaits) {
  const int status = InChild([] {
    BlockTerminationSignals();
    absl::Notification running, never;
    {
      TerminationHandler handler([&](int) {
        running.Notify();
        kill(getpid(), SIGTERM);
        never.WaitForNotification();
      });
      kill(getpid(), SIGTERM);
      running.WaitForNotification();
    }
  });
  EXPECT_EQ(ExitCode(status), 128 + SIGTERM);
}

TEST(TerminationHandlerTest, KeepsASignalThatCameBeforeIt) {
  const int status = InChild([] {
    BlockTerminationSignals();
    kill(getpid(), SIGTERM);
    absl::Notification done;
    TerminationHandler handler([&](int) { done.Notify(); });
    done.WaitForNotification();
    _exit(7);
  });
  EXPECT_EQ(ExitCode(status), 7);
}

TEST(TerminationHandlerTest, WorksBesideThreadsThatExistedBefore) {
  const int status = InChild([] {
    absl::Notification never;
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&] { never.WaitForNotification(); });
    }
    ExitCleanlyAfter(SIGTERM);
  });
  EXPECT_EQ(ExitCode(status), 7);
}

TEST(TerminationHandlerTest, EndsQuietlyWithoutSignals) {
  const int status = InChild([] {
    BlockTerminationSignals();
    for (int i = 0; i < 10; ++i) TerminationHandler handler([](int) { _exit(1); });
    _exit(7);
  });
  EXPECT_EQ(ExitCode(status), 7);
}

}  // namespace
}  // namespace moe
