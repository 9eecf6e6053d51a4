#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "client/moectl/child_process.h"
#include "client/moectl/command.h"
#include "client/moectl/json.h"
#include "client/moectl/text_table.h"
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

absl::StatusOr<std::string> MakeTemporaryFolder() {
  std::error_code error;
  const std::filesystem::path base = std::filesystem::temp_directory_path(error);
  std::string pattern =
      (error ? std::filesystem::path("/tmp") : base) / "moectl-eval-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) {
    return absl::InternalError(absl::StrCat("can't make a temporary folder ", pattern,
                                            ": ", std::strerror(errno)));
  }
  return pattern;
}

class EvalCommand final : public Command {
 public:
  std::string name() const override { return "eval"; }
  std::string summary() const override {
    return "perplexity of a checkpoint on held-out text";
  }
  std::string details() const override {
    return "Starts a coordinator, an expert server and a worker of its own on 127.0.0.1, "
           "evaluates with\n"
           "the gate's noise and dropout off, and stops them. A running job isn't "
           "touched.\n\n"
           "Usage: moectl eval --checkpoint DIR --data DIR [--split test|validation] "
           "[--threads N]\n"
           "                   [--bin_dir DIR] [--json]\n\n"
           "Example: moectl eval --checkpoint out/checkpoints --data out/data\n";
  }
  void AddFlags(FlagSet& flags) override {
    flags.Add(
        {.name = "checkpoint",
         .value = &checkpoint_,
         .placeholder = "DIR",
         .help =
             "A checkpoint's folder, or a folder of checkpoints, of which the last is "
             "taken.",
         .required = true});
    flags.Add(
        {.name = "data",
         .value = &data_,
         .placeholder = "DIR",
         .help = "The text that the model was trained on, as prepare_text wrote it.",
         .required = true});
    flags.Add({.name = "split",
               .value = &split_,
               .placeholder = "SPLIT",
               .help = "test or validation.",
               .choices = {"test", "validation"}});
    flags.Add(
        {.name = "threads",
         .value = &threads_,
         .placeholder = "N",
         .help =
             "Compute threads of the server and of the worker. 0: one a processor. They "
             "change no result."});
    flags.Add({.name = "bin_dir",
               .value = &bin_dir_,
               .placeholder = "DIR",
               .help = "Where coordinator, expert_server and worker are."});
    flags.Add({.name = "json", .value = &json_, .help = "Print JSON, for scripts."});
  }

  absl::Status Run(std::ostream& out) override {
    BlockTerminationSignals();
    absl::Notification stop;
    const TerminationHandler handler([&stop](int) { stop.Notify(); });
    ASSIGN_OR_RETURN(const std::string folder, MakeTemporaryFolder());
    const absl::Cleanup remove = [&folder] { RemoveTree(folder).IgnoreError(); };
    ASSIGN_OR_RETURN(Json result, Evaluate(folder, stop));
    if (result.value("phase", "") != "FINISHED") {
      return absl::AbortedError(
          result.value("failure", "the evaluation ended without a result"));
    }
    const Json perplexity = result.value(split_ + "_perplexity", Json());
    Json summary = {{"checkpoint", checkpoint_},
                    {"split", split_},
                    {"step", result.value("step", Json())},
                    {"perplexity", perplexity},
                    {"balance", result.value("balance", Json::array())},
                    {"seconds", result.value("seconds", Json())}};
    out << (json_ ? Print(summary) : View(summary));
    return absl::OkStatus();
  }

 private:
  // Runs the private cluster; returns what its coordinator wrote.
  absl::StatusOr<Json> Evaluate(const std::string& folder,
                                const absl::Notification& stop) {
    ASSIGN_OR_RETURN(
        const std::string coordinator_program,
        FindProgram(bin_dir_, "coordinator", "server/coordinator/coordinator"));
    ASSIGN_OR_RETURN(const std::string server_program,
                     FindProgram(bin_dir_, "expert_server", "server/expert_server"));
    ASSIGN_OR_RETURN(const std::string worker_program,
                     FindProgram(bin_dir_, "worker", "worker/worker"));
    const std::string port_file = folder + "/address";
    const std::string result_file = folder + "/result.json";
    const int threads =
        threads_ > 0
            ? threads_
            : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    const std::string threads_flag = absl::StrCat("--threads=", threads);

    ASSIGN_OR_RETURN(
        const std::unique_ptr<ChildProcess> coordinator,
        ChildProcess::Start(
            "coordinator",
            {coordinator_program, "--evaluate=" + split_, "--checkpoint=" + checkpoint_,
             "--listen=127.0.0.1:0", "--servers=1", "--workers=1",
             "--port_file=" + port_file, "--result_json=" + result_file},
            folder + "/coordinator.log"));
    ASSIGN_OR_RETURN(const std::string address,
                     AwaitAddress(port_file, *coordinator, stop));
    ASSIGN_OR_RETURN(
        const std::unique_ptr<ChildProcess> server,
        ChildProcess::Start("expert_server",
                            {server_program, "--name=eval", "--coordinator=" + address,
                             "--listen=127.0.0.1:0", threads_flag},
                            folder + "/expert_server.log"));
    ASSIGN_OR_RETURN(
        const std::unique_ptr<ChildProcess> worker,
        ChildProcess::Start("worker",
                            {worker_program, "--name=eval", "--coordinator=" + address,
                             "--data=" + data_, threads_flag},
                            folder + "/worker.log"));

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
    if (coordinator->ExitStatus() != 0)
      return absl::AbortedError(coordinator->LastWords());
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
    return result;
  }

  static absl::StatusOr<std::string> AwaitAddress(const std::string& port_file,
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

  static std::string View(const Json& summary) {
    const auto number = [](const Json& value) {
      return value.is_number() ? absl::StrFormat("%.3f", value.get<double>())
                               : std::string("-");
    };
    std::string text = absl::StrCat(summary["split"].get<std::string>(), " perplexity ",
                                    number(summary["perplexity"]), " after ",
                                    summary["step"].dump(), " steps\n");
    if (summary["balance"].empty()) return text;
    constexpr auto kRight = TextTable::Align::kRight;
    TextTable table(std::vector<TextTable::Column>{{"LAYER", kRight},
                                                   {"CV(IMPORTANCE)", kRight},
                                                   {"CV(LOAD)", kRight},
                                                   {"MAX/MEAN LOAD", kRight}});
    for (const Json& layer : summary["balance"]) {
      table.AddRow({layer.value("layer", Json()).dump(),
                    number(layer.value("cv_importance", Json())),
                    number(layer.value("cv_load", Json())),
                    number(layer.value("max_over_mean_load", Json()))});
    }
    return absl::StrCat(text, "\n", table.ToString());
  }

  std::string checkpoint_;
  std::string data_;
  std::string split_ = "test";
  int threads_ = 0;
  std::string bin_dir_ = OwnFolder();
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeEvalCommand() { return std::make_unique<EvalCommand>(); }

}  // namespace moe
