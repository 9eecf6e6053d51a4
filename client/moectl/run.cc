#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/moectl/command.h"
#include "common/base/protocol.h"

namespace moe {
namespace {

std::string Help(const std::vector<std::unique_ptr<Command>>& commands) {
  std::string help =
      "moectl asks a Switchyard cluster what it is doing, changes it, and looks at jobs "
      "and "
      "checkpoints.\n\n"
      "Usage: moectl COMMAND [FLAGS]\n\nCommands:\n";
  for (const auto& command : commands) {
    absl::StrAppend(&help,
                    absl::StrFormat("  %-10s %s\n", command->name(), command->summary()));
  }
  absl::StrAppend(
      &help,
      "  help       this text; `moectl COMMAND --help` tells more about one command\n"
      "\nThe coordinator is found by --coordinator HOST:PORT, else by the environment "
      "variable\nMOE_COORDINATOR, else at 127.0.0.1:7070. Where it has TLS, --tls_ca,\n"
      "--tls_cert and --tls_key, or MOE_TLS_CA, MOE_TLS_CERT and MOE_TLS_KEY, name the "
      "files. Every\n"
      "command has --json for scripts.\n\nExit status: 0 done, 1 failed, 2 wrong command "
      "line.\n");
  return help;
}

bool IsHelp(const std::string& argument) {
  return argument == "--help" || argument == "-help" || argument == "-h";
}

}  // namespace

std::vector<std::unique_ptr<Command>> MakeCommands() {
  std::vector<std::unique_ptr<Command>> commands;
  commands.push_back(MakeStatusCommand());
  commands.push_back(MakeTopCommand());
  commands.push_back(MakeMembersCommand());
  commands.push_back(MakeShardsCommand());
  commands.push_back(MakeExpertsCommand());
  commands.push_back(MakeDescribeCommand());
  commands.push_back(MakePlanCommand());
  commands.push_back(MakeDigestCommand());
  commands.push_back(MakeEvalCommand());
  commands.push_back(MakeCheckpointCommand());
  commands.push_back(MakeScaleCommand());
  commands.push_back(MakeDrainCommand());
  commands.push_back(MakeTraceCommand());
  return commands;
}

int RunMoectl(const std::vector<std::string>& arguments, std::ostream& out,
              std::ostream& err) {
  const std::vector<std::unique_ptr<Command>> commands = MakeCommands();
  const auto find = [&](const std::string& name) -> Command* {
    for (const auto& command : commands) {
      if (command->name() == name) return command.get();
    }
    return nullptr;
  };
  std::vector<std::string> rest = arguments;
  if (!rest.empty() && (rest[0] == "help" || IsHelp(rest[0]))) {
    // `moectl help COMMAND` is `moectl COMMAND --help`.
    rest.erase(rest.begin());
    if (!rest.empty()) rest = {rest[0], "--help"};
  }
  if (rest.empty()) {
    out << Help(commands);
    return 0;
  }
  if (rest[0] == "--version") {
    out << "moectl " << kVersion << "\n";
    return 0;
  }
  Command* command = find(rest[0]);
  if (command == nullptr) {
    err << "moectl: unknown command '" << rest[0]
        << "'; `moectl help` lists the commands\n";
    return 2;
  }
  rest.erase(rest.begin());
  FlagSet flags;
  command->AddFlags(flags);
  if (std::any_of(rest.begin(), rest.end(), IsHelp)) {
    out << "moectl " << command->name() << ": " << command->summary() << "\n\n"
        << command->details() << "\nFlags:\n"
        << flags.Help();
    return 0;
  }
  if (const absl::Status parsed = flags.Parse(rest); !parsed.ok()) {
    err << "moectl " << command->name() << ": " << parsed.message() << "; `moectl "
        << command->name() << " --help` tells more\n";
    return 2;
  }
  const absl::Status status = command->Run(out);
  out.flush();
  if (!status.ok()) {
    err << "moectl " << command->name() << ": " << status.message() << "\n";
    return 1;
  }
  if (!out) {
    err << "moectl " << command->name() << ": can't write the output\n";
    return 1;
  }
  return 0;
}

}  // namespace moe
