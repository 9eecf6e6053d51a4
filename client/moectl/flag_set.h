// The flags of one command.
#pragma once

#include <span>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace moe {

class FlagSet {
 public:
  struct Flag {
    std::string name;
    // Not owned; its value at first is the default. A bool takes no value on the command
    // line.
    std::variant<std::string*, int*, bool*, absl::Duration*, double*> value = {};
    // What the help calls the value: "FILE".
    std::string placeholder = {};
    std::string help = {};
    bool required = false;
    // Of a string; empty: any.
    std::vector<std::string> choices = {};
    // Of an int; a double is at least 0.
    int minimum = 0;
  };

  void Add(Flag flag);
  // Names are in snake_case; the command line may have dashes for underscores.
  // INVALID_ARGUMENT says what is wrong and what would be right.
  absl::Status Parse(std::span<const std::string> arguments);
  // One paragraph a flag, indented.
  std::string Help() const;

 private:
  absl::Status Set(const Flag& flag, const std::string& text);

  struct Entry {
    Flag flag;
    std::string default_text;
    bool seen = false;
  };
  std::vector<Entry> entries_;
};

}  // namespace moe
