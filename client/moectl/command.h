// One command of moectl.
#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/moectl/flag_set.h"

namespace moe {

class Command {
 public:
  virtual ~Command() = default;
  virtual std::string name() const = 0;
  // One line, for the list of commands.
  virtual std::string summary() const = 0;
  // What --help says after the summary: details and examples; ends with a newline.
  virtual std::string details() const = 0;
  virtual void AddFlags(FlagSet& flags) = 0;
  virtual absl::Status Run(std::ostream& out) = 0;
};

std::unique_ptr<Command> MakeStatusCommand();
std::unique_ptr<Command> MakeTopCommand();
std::unique_ptr<Command> MakeMembersCommand();
std::unique_ptr<Command> MakeShardsCommand();
std::unique_ptr<Command> MakeExpertsCommand();
std::unique_ptr<Command> MakeDescribeCommand();
std::unique_ptr<Command> MakePlanCommand();
std::unique_ptr<Command> MakeDigestCommand();
std::unique_ptr<Command> MakeEvalCommand();
std::unique_ptr<Command> MakeCheckpointCommand();
std::unique_ptr<Command> MakeScaleCommand();
std::unique_ptr<Command> MakeDrainCommand();
std::unique_ptr<Command> MakeTraceCommand();

// All of them, in the order of the help.
std::vector<std::unique_ptr<Command>> MakeCommands();

// Runs `moectl ARGUMENTS`. Returns the exit status: 0, 1 if the command failed, 2 if the
// command line makes no sense.
int RunMoectl(const std::vector<std::string>& arguments, std::ostream& out,
              std::ostream& err);

}  // namespace moe
