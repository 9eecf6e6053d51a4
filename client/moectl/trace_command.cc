#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/moectl/command.h"
#include "client/moectl/json.h"
#include "common/base/status_macros.h"
#include "common/io/file.h"
#include "common/trace/check_trace.h"

namespace moe {
namespace {

class TraceCommand final : public Command {
 public:
  std::string name() const override { return "trace"; }
  std::string summary() const override {
    return "prove from servers' traces that every contribution counted exactly once";
  }
  std::string details() const override {
    return "Reads what servers wrote to --trace_dir, all of them and of all generations, "
           "without "
           "what was\n"
           "rolled back. Fails with the first contribution that was applied twice, in "
           "another "
           "generation\n"
           "than its own, or not at all.\n\n"
           "Usage: moectl trace --dir DIR [--steps N] [--json]\n\n"
           "Example: moectl trace --dir out/trace --steps 1000\n";
  }
  void AddFlags(FlagSet& flags) override {
    flags.Add({.name = "dir",
               .value = &dir_,
               .placeholder = "DIR",
               .help = "Folder with the *.trace files of all servers.",
               .required = true});
    flags.Add({.name = "steps",
               .value = &steps_,
               .placeholder = "N",
               .help =
                   "Steps that the run took, all of which must be there. 0: as many as "
                   "all servers have."});
    flags.Add({.name = "json", .value = &json_, .help = "Print JSON, for scripts."});
  }
  absl::Status Run(std::ostream& out) override {
    ASSIGN_OR_RETURN(const std::vector<TraceFile> files, ReadFiles());
    std::optional<uint64_t> end;
    if (steps_ > 0) end = static_cast<uint64_t>(steps_);
    ASSIGN_OR_RETURN(const TraceSummary summary, CheckTraces(files, end));
    if (json_) {
      out << Print({{"generations", summary.generations},
                    {"begin", summary.begin},
                    {"end", summary.end},
                    {"applied", summary.applied},
                    {"answered_again", summary.answered},
                    {"ignored", summary.ignored},
                    {"rolled_back", summary.rolled_back}});
      return absl::OkStatus();
    }
    out << absl::StrFormat(
        "steps %d to %d in %d generations: %d contributions applied, each once\n"
        "came again: %d answered once more, %d ignored; rolled back: %d steps of "
        "servers\n",
        summary.begin, summary.end, summary.generations, summary.applied,
        summary.answered, summary.ignored, summary.rolled_back);
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::vector<TraceFile>> ReadFiles() const {
    std::vector<std::string> paths;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(dir_, error)) {
      if (entry.path().extension() == ".trace") paths.push_back(entry.path().string());
    }
    if (error) {
      return absl::NotFoundError(absl::StrCat(dir_, ": ", error.message()));
    }
    if (paths.empty()) {
      return absl::NotFoundError(
          absl::StrCat(dir_, " has no *.trace; give the --trace_dir of the servers"));
    }
    std::sort(paths.begin(), paths.end());
    std::vector<TraceFile> files;
    for (const std::string& path : paths) {
      TraceFile& file = files.emplace_back();
      file.name = std::filesystem::path(path).filename().string();
      ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
      absl::StatusOr<std::vector<TracePart>> parts = ParseTrace(text);
      if (!parts.ok()) return Annotate(parts.status(), path);
      file.parts = *std::move(parts);
    }
    return files;
  }

  std::string dir_;
  int steps_ = 0;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeTraceCommand() { return std::make_unique<TraceCommand>(); }

}  // namespace moe
