#include "client/moectl/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/io/file.h"

namespace moe {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(5);
constexpr absl::Duration kPoll = absl::Milliseconds(20);

}  // namespace

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(
    const std::string& name, std::vector<std::string> command,
    const std::string& log_path) {
  std::vector<char*> arguments;
  for (std::string& argument : command) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  const int log = open(log_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (log < 0) {
    return absl::InternalError(
        absl::StrCat("can't write ", log_path, ": ", std::strerror(errno)));
  }
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {
    // Only calls that are safe after a fork of a process with threads.
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    if (getppid() != parent || dup2(log, STDOUT_FILENO) < 0 ||
        dup2(log, STDERR_FILENO) < 0) {
      _exit(126);
    }
    execv(arguments[0], arguments.data());
    _exit(127);
  }
  const int error = errno;
  close(log);
  if (pid < 0) {
    return absl::InternalError(
        absl::StrCat("can't start ", name, ": ", std::strerror(error)));
  }
  return std::unique_ptr<ChildProcess>(new ChildProcess(name, log_path, pid));
}

ChildProcess::~ChildProcess() { Stop(); }

std::optional<int> ChildProcess::ExitStatus() {
  if (exit_status_.has_value()) return exit_status_;
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) == pid_) {
    exit_status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  return exit_status_;
}

std::optional<int> ChildProcess::WaitFor(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!ExitStatus().has_value() && absl::Now() < deadline) absl::SleepFor(kPoll);
  return exit_status_;
}

void ChildProcess::Stop() {
  if (ExitStatus().has_value()) return;
  kill(pid_, SIGTERM);
  if (WaitFor(kPatience).has_value()) return;
  kill(pid_, SIGKILL);
  WaitFor(absl::InfiniteDuration());
}

std::string ChildProcess::LastWords() const {
  const absl::StatusOr<std::string> log = ReadFile(log_path_);
  std::string last = "said nothing";
  if (log.ok()) {
    for (absl::string_view line : absl::StrSplit(*log, '\n', absl::SkipWhitespace())) {
      last = std::string(line);
    }
  }
  return absl::StartsWith(last, name_) ? last : absl::StrCat(name_, ": ", last);
}

}  // namespace moe
