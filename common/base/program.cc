#include "common/base/program.h"

#include <glog/logging.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "common/base/protocol.h"
#include "common/base/string_view.h"

// Abseil calls this when the command line is wrong and would then exit with 1, which
// scripts can't tell from a failed run.
extern "C" void ABSL_INTERNAL_C_SYMBOL(AbslInternalReportFatalUsageError)(
    absl::string_view) {
  std::fprintf(stderr, "--help lists the flags.\n");
  std::fflush(nullptr);
  std::_Exit(2);
}

namespace moe {
namespace {

constexpr size_t kWidth = 100;

std::string& ProgramName() {
  static std::string* const name = new std::string("program");
  return *name;
}

// The words of text in lines of kWidth, each indented; line breaks in the text stay.
std::string Wrap(absl::string_view text, const std::string& indent) {
  std::string wrapped;
  for (absl::string_view paragraph : absl::StrSplit(text, '\n')) {
    std::string line = indent;
    for (absl::string_view word : absl::StrSplit(paragraph, ' ', absl::SkipEmpty())) {
      if (line.size() > indent.size() && line.size() + 1 + word.size() > kWidth) {
        absl::StrAppend(&wrapped, line, "\n");
        line = indent;
      }
      absl::StrAppend(&line, line.size() > indent.size() ? " " : "", word);
    }
    absl::StrAppend(&wrapped, line, "\n");
  }
  return wrapped;
}

std::string Help(std::string_view usage) {
  std::string help = absl::StrCat(
      ToAbsl(usage), absl::EndsWith(ToAbsl(usage), "\n") ? "" : "\n", "\nFlags:\n");
  std::map<absl::string_view, absl::CommandLineFlag*> flags;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (!absl::StrContains(flag->Filename(), "absl/flags/") && !flag->IsRetired()) {
      flags[name] = flag;
    }
  }
  for (const auto& [name, flag] : flags) {
    const std::string value = flag->DefaultValue();
    const bool plain = flag->IsOfType<bool>() || flag->IsOfType<int32_t>() ||
                       flag->IsOfType<int64_t>() || flag->IsOfType<double>();
    absl::StrAppend(&help, "  --", name,
                    " (default: ", plain ? value : absl::StrCat("\"", value, "\""), ")\n",
                    Wrap(flag->Help(), "      "));
  }
  absl::StrAppend(
      &help,
      "  --flagfile\n"
      "      Files to read flags from, one --name=value a line, '#' begins a comment; "
      "separated by commas.\n"
      "  --help, --version\n"
      "      Prints this text, or the version, and exits.\n");
  return help;
}

[[noreturn]] void PrintAndExit(const std::string& text) {
  const bool written = std::fputs(text.c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
  std::exit(written ? 0 : 1);
}

}  // namespace

std::vector<std::string_view> ParseCommandLine(int argc, char** argv,
                                               std::string_view usage,
                                               size_t max_arguments) {
  if (argc > 0) {
    const absl::string_view path = argv[0];
    const size_t slash = path.rfind('/');
    ProgramName() = std::string(slash == path.npos ? path : path.substr(slash + 1));
  }
  // Abseil's own --help leaves out flags of other files, and ends with status 1.
  for (int i = 1; i < argc && absl::string_view(argv[i]) != "--"; ++i) {
    const absl::string_view argument = argv[i];
    if (argument == "--help" || argument == "-help" || argument == "-h")
      PrintAndExit(Help(usage));
    if (argument == "--version" || argument == "-version") {
      PrintAndExit(absl::StrCat(ProgramName(), " ", kVersion, "\n"));
    }
  }
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);

  FLAGS_logtostderr = true;
  if (!google::IsGoogleLoggingInitialized()) {
    // glog keeps the pointer.
    google::InitGoogleLogging(ProgramName().c_str());
  }
  if (rest.size() > max_arguments + 1) {
    ExitWithUsageError(
        absl::StrCat("unexpected argument '", rest[max_arguments + 1], "'"));
  }
  return {rest.begin() + (rest.empty() ? 0 : 1), rest.end()};
}

void ExitWithUsageError(std::string_view message) {
  std::fprintf(stderr, "%s: %.*s\n--help lists the flags.\n", ProgramName().c_str(),
               static_cast<int>(message.size()), message.data());
  std::exit(2);
}

uint64_t BytesOfGib(std::string_view flag, double gib) {
  if (!(gib >= 0 && gib <= 1e9)) {
    ExitWithUsageError(
        absl::StrCat("--", ToAbsl(flag), " is ", gib, "; it must be from 0 to 1e9"));
  }
  return static_cast<uint64_t>(gib * (uint64_t{1} << 30));
}

}  // namespace moe
