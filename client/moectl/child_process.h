// A program of ours, run as a child.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace moe {

class ChildProcess {
 public:
  // Its output goes to log_path. The kernel ends it with SIGTERM should this process die.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(
      const std::string& name, std::vector<std::string> command,
      const std::string& log_path);
  // Stops it, if it still runs.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // Exit status, or 128 + the signal that ended it; nothing while it runs.
  std::optional<int> ExitStatus();
  // The same, after waiting for up to `timeout`.
  std::optional<int> WaitFor(absl::Duration timeout);
  // SIGTERM, and SIGKILL after a few seconds.
  void Stop();
  // "worker: <the last line of its log>"; the name not twice.
  std::string LastWords() const;

 private:
  ChildProcess(std::string name, std::string log_path, pid_t pid)
      : name_(std::move(name)), log_path_(std::move(log_path)), pid_(pid) {}

  const std::string name_;
  const std::string log_path_;
  const pid_t pid_;
  std::optional<int> exit_status_;
};

}  // namespace moe
