#include "client/moectl/flag_set.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

std::string TextOf(const FlagSet::Flag& flag) {
  if (const auto* text = std::get_if<std::string*>(&flag.value)) return **text;
  if (const auto* number = std::get_if<int*>(&flag.value)) return absl::StrCat(**number);
  if (const auto* number = std::get_if<double*>(&flag.value)) {
    return absl::StrCat(**number);
  }
  if (const auto* duration = std::get_if<absl::Duration*>(&flag.value)) {
    return absl::FormatDuration(**duration);
  }
  return "";
}

}  // namespace

void FlagSet::Add(Flag flag) {
  std::string text = TextOf(flag);
  entries_.push_back({.flag = std::move(flag), .default_text = std::move(text)});
}

absl::Status FlagSet::Set(const Flag& flag, const std::string& text) {
  const auto wrong = [&](const std::string& valid) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", flag.name, " is '", text, "'; it must be ", valid));
  };
  if (auto* const* value = std::get_if<std::string*>(&flag.value)) {
    if (!flag.choices.empty() &&
        std::find(flag.choices.begin(), flag.choices.end(), text) == flag.choices.end()) {
      return wrong(absl::StrJoin(flag.choices, " or "));
    }
    **value = text;
  } else if (auto* const* number = std::get_if<int*>(&flag.value)) {
    if (!absl::SimpleAtoi(text, *number) || **number < flag.minimum) {
      return wrong(absl::StrCat("a whole number of at least ", flag.minimum));
    }
  } else if (auto* const* real = std::get_if<double*>(&flag.value)) {
    if (!absl::SimpleAtod(text, *real) || !std::isfinite(**real) || **real < 0) {
      return wrong("a number of at least 0");
    }
  } else if (auto* const* duration = std::get_if<absl::Duration*>(&flag.value)) {
    if (!absl::ParseDuration(text, *duration) || **duration <= absl::ZeroDuration()) {
      return wrong("a time like 500ms, 2s or 1m");
    }
  }
  return absl::OkStatus();
}

absl::Status FlagSet::Parse(std::span<const std::string> arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument.size() < 2 || argument[0] != '-') {
      return absl::InvalidArgumentError(
          absl::StrCat("unexpected argument '", argument, "'"));
    }
    const size_t begin = argument[1] == '-' ? 2 : 1;
    const size_t equals = argument.find('=');
    std::string name = argument.substr(begin, equals - begin);
    std::replace(name.begin(), name.end(), '-', '_');
    const auto entry = std::find_if(entries_.begin(), entries_.end(),
                                    [&](const Entry& e) { return e.flag.name == name; });
    if (entry == entries_.end()) {
      return absl::InvalidArgumentError(absl::StrCat("unknown flag '", argument, "'"));
    }
    entry->seen = true;
    if (bool* const* on = std::get_if<bool*>(&entry->flag.value)) {
      if (equals != std::string::npos) {
        return absl::InvalidArgumentError(absl::StrCat("--", name, " takes no value"));
      }
      **on = true;
    } else if (equals != std::string::npos) {
      RETURN_IF_ERROR(Set(entry->flag, argument.substr(equals + 1)));
    } else if (i + 1 < arguments.size()) {
      RETURN_IF_ERROR(Set(entry->flag, arguments[++i]));
    } else {
      return absl::InvalidArgumentError(absl::StrCat("--", name, " needs a value"));
    }
  }
  for (const Entry& entry : entries_) {
    if (entry.flag.required && !entry.seen) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--", entry.flag.name, " ", entry.flag.placeholder, " is missing"));
    }
  }
  return absl::OkStatus();
}

std::string FlagSet::Help() const {
  std::string help;
  for (const Entry& entry : entries_) {
    absl::StrAppend(&help, "  --", entry.flag.name,
                    entry.flag.placeholder.empty() ? "" : " ", entry.flag.placeholder,
                    "\n      ", entry.flag.help);
    if (entry.flag.required) {
      absl::StrAppend(&help, " Required.");
    } else if (!entry.default_text.empty()) {
      absl::StrAppend(&help, " Default: ", entry.default_text);
    }
    absl::StrAppend(&help, "\n");
  }
  return help;
}

}  // namespace moe
