#include "common/base/signals.h"

#include <glog/logging.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <ucontext.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

namespace moe {
namespace {

sigset_t TerminationSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  return signals;
}

int OpenSignalFd() {
  const sigset_t signals = TerminationSignals();
  return signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
}

// Runs on a thread that a library started before main (OpenBLAS does) and that therefore
// blocks nothing: makes it block the signals once it goes on, and sends this one again.
void BlockHereAndPassOn(int signal, siginfo_t*, void* context) {
  const int error = errno;
  sigset_t& mask = static_cast<ucontext_t*>(context)->uc_sigmask;
  sigaddset(&mask, SIGINT);
  sigaddset(&mask, SIGTERM);
  kill(getpid(), signal);
  errno = error;
}

}  // namespace

void BlockTerminationSignals() {
  const sigset_t signals = TerminationSignals();
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, &signals, nullptr), 0);
  struct sigaction action = {};
  action.sa_sigaction = BlockHereAndPassOn;
  action.sa_mask = signals;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM}) {
    PCHECK(sigaction(signal, &action, nullptr) == 0);
  }
}

TerminationHandler::TerminationHandler(std::function<void(int signal)> callback)
    : callback_(std::move(callback)),
      signal_fd_(OpenSignalFd()),
      wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  PCHECK(signal_fd_ >= 0 && wake_fd_ >= 0) << "no descriptor for signals";
  watcher_ = std::thread([this] { Watch(); });
}

TerminationHandler::~TerminationHandler() {
  stopping_ = true;
  Wake();
  watcher_.join();
  if (callback_thread_.joinable()) callback_thread_.join();
  close(signal_fd_);
  close(wake_fd_);
}

void TerminationHandler::Wake() {
  const uint64_t one = 1;
  PCHECK(write(wake_fd_, &one, sizeof(one)) == sizeof(one));
}

void TerminationHandler::Watch() {
  // While a callback runs this goes on, even under the destructor: a second signal must
  // work.
  while (!stopping_ || callback_running_) {
    pollfd fds[] = {{signal_fd_, POLLIN, 0}, {wake_fd_, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0) {
      PCHECK(errno == EINTR);
      continue;
    }
    uint64_t wakes;
    if ((fds[1].revents & POLLIN) != 0) PCHECK(read(wake_fd_, &wakes, sizeof(wakes)) > 0);
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof(info)) != sizeof(info)) continue;
    const int signal = static_cast<int>(info.ssi_signo);
    if (callback_thread_.joinable()) _exit(128 + signal);
    callback_running_ = true;
    callback_thread_ = std::thread([this, signal] {
      callback_(signal);
      callback_running_ = false;
      Wake();
    });
  }
}

}  // namespace moe
