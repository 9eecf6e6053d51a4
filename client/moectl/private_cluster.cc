#include "client/moectl/private_cluster.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "client/moectl/child_process.h"
#include "common/base/signals.h"
#include "common/base/status_macros.h"
#include "common/io/file.h"

namespace moe {
namespace {

// For the coordinator's account after a member failed: its lease, and time to tell.
constexpr absl::Duration kCausePatience = absl::Seconds(10);
constexpr absl::Duration kEndPatience = absl::Seconds(10);
constexpr absl::Duration kStartPatience = absl::Seconds(60);
constexpr absl::Duration kPoll = absl::Milliseconds(50);

// The program `name` in bin_dir, or where the build puts it below bin_dir (`target`).
absl::StatusOr<std::string> FindProgram(const std::string& bin_dir,
                                        const std::string& name,
                                        const std::string& target) {
  const std::string candidates[] = {absl::StrCat(bin_dir, "/", name),
                                    absl::StrCat(bin_dir, "/", target)};
  for (const std::string& path : candidates) {
    if (!std::filesystem::is_directory(path) && access(path.c_str(), X_OK) == 0)
      return path;
  }
  return absl::NotFoundError(absl::StrCat("there is no program ", candidates[0], " or ",
                                          candidates[1],
                                          "; --bin_dir says where to look"));
}

// Where this program lies, or, in a build tree, the root of it.
std::string OwnFolder() {
  std::error_code error;
  const std::filesystem::path self =
      std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path folder = self.parent_path();
  if (folder.filename() == "client") return folder.parent_path().string();
  return folder.string();
}

absl::StatusOr<std::string> AwaitAddress(const std::string& port_file,
                                         ChildProcess& coordinator,
                                         const absl::Notification& stop) {
  const absl::Time deadline = absl::Now() + kStartPatience;
  while (true) {
    // Written atomically: it is there whole or not at all.
    if (const auto text = ReadFile(port_file); text.ok()) {
      return std::string(absl::StripAsciiWhitespace(*text));
    }
    if (coordinator.ExitStatus().has_value()) {
      return absl::AbortedError(coordinator.LastWords());
    }
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError("the coordinator doesn't start to listen");
    }
    if (stop.WaitForNotificationWithTimeout(kPoll))
      return absl::CancelledError("stopped");
  }
}

}  // namespace

PrivateClusterOptions DefaultPrivateCluster() {
  PrivateClusterOptions options;
  options.bin_dir = OwnFolder();
  return options;
}

void AddPrivateClusterFlags(PrivateClusterOptions* options, bool required,
                            FlagSet& flags) {
  flags.Add(
      {.name = "checkpoint",
       .value = &options->checkpoint,
       .placeholder = "DIR",
       .help = "A checkpoint's folder, or a folder of checkpoints, of which the last is "
               "taken.",
       .required = required});
  flags.Add({.name = "data",
             .value = &options->data,
             .placeholder = "DIR",
             .help = "The text that the model was trained on, as prepare_text wrote it.",
             .required = required});
  flags.Add({.name = "split",
             .value = &options->split,
             .placeholder = "SPLIT",
             .help = "test or validation.",
             .choices = {"test", "validation"}});
  flags.Add(
      {.name = "threads",
       .value = &options->threads,
       .placeholder = "N",
       .help =
           "Compute threads of the server and of the worker. 0: one a processor. They "
           "change no result."});
  flags.Add({.name = "bin_dir",
             .value = &options->bin_dir,
             .placeholder = "DIR",
             .help = "Where coordinator, expert_server and worker are."});
}

absl::StatusOr<TemporaryFolder> TemporaryFolder::Make() {
  std::error_code error;
  const std::filesystem::path base = std::filesystem::temp_directory_path(error);
  std::string pattern = (error ? std::filesystem::path("/tmp") : base) / "moectl-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) {
    return absl::InternalError(absl::StrCat("can't make a temporary folder ", pattern,
                                            ": ", std::strerror(errno)));
  }
  return TemporaryFolder(std::move(pattern));
}

TemporaryFolder::~TemporaryFolder() {
  if (!path_.empty()) RemoveTree(path_).IgnoreError();
}

absl::StatusOr<Json> EvaluateInPrivateCluster(
    const PrivateClusterOptions& options, const std::vector<std::string>& worker_flags,
    const std::string& folder) {
  BlockTerminationSignals();
  absl::Notification stop;
  const TerminationHandler handler([&stop](int) { stop.Notify(); });
  ASSIGN_OR_RETURN(
      const std::string coordinator_program,
      FindProgram(options.bin_dir, "coordinator", "server/coordinator/coordinator"));
  ASSIGN_OR_RETURN(const std::string server_program,
                   FindProgram(options.bin_dir, "expert_server", "server/expert_server"));
  ASSIGN_OR_RETURN(const std::string worker_program,
                   FindProgram(options.bin_dir, "worker", "worker/worker"));
  const std::string port_file = folder + "/address";
  const std::string result_file = folder + "/result.json";
  const int threads =
      options.threads > 0
          ? options.threads
          : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const std::string threads_flag = absl::StrCat("--threads=", threads);

  ASSIGN_OR_RETURN(
      const std::unique_ptr<ChildProcess> coordinator,
      ChildProcess::Start(
          "coordinator",
          {coordinator_program, "--evaluate=" + options.split,
           "--checkpoint=" + options.checkpoint, "--listen=127.0.0.1:0", "--servers=1",
           "--workers=1", "--port_file=" + port_file, "--result_json=" + result_file},
          folder + "/coordinator.log"));
  ASSIGN_OR_RETURN(const std::string address,
                   AwaitAddress(port_file, *coordinator, stop));
  ASSIGN_OR_RETURN(
      const std::unique_ptr<ChildProcess> server,
      ChildProcess::Start("expert_server",
                          {server_program, "--name=eval", "--coordinator=" + address,
                           "--listen=127.0.0.1:0", threads_flag},
                          folder + "/expert_server.log"));
  std::vector<std::string> worker_command = {worker_program, "--name=eval",
                                             "--coordinator=" + address,
                                             "--data=" + options.data, threads_flag};
  worker_command.insert(worker_command.end(), worker_flags.begin(), worker_flags.end());
  ASSIGN_OR_RETURN(
      const std::unique_ptr<ChildProcess> worker,
      ChildProcess::Start("worker", std::move(worker_command), folder + "/worker.log"));

  while (!coordinator->ExitStatus().has_value()) {
    if (stop.WaitForNotificationWithTimeout(kPoll))
      return absl::CancelledError("stopped");
    for (ChildProcess* member : {server.get(), worker.get()}) {
      if (member->ExitStatus().value_or(0) == 0) continue;
      // The member's own words say more than the coordinator's that it is gone.
      coordinator->WaitFor(kCausePatience);
      return absl::AbortedError(member->LastWords());
    }
  }
  if (coordinator->ExitStatus() != 0) return absl::AbortedError(coordinator->LastWords());
  for (ChildProcess* member : {server.get(), worker.get()}) {
    if (member->WaitFor(kEndPatience).value_or(1) != 0) {
      return absl::AbortedError(member->LastWords());
    }
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(result_file));
  Json result = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!result.is_object()) {
    return absl::InternalError("the coordinator's result is not JSON");
  }
  if (result.value("phase", "") != "FINISHED") {
    return absl::AbortedError(
        result.value("failure", "the evaluation ended without a result"));
  }
  return result;
}

}  // namespace moe
