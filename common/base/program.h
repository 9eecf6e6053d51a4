// The command line of our programs, the same for all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace moe {

// Parses Abseil flags (--flagfile included) and sends the log to stderr. Instead of
// returning
//   --help     prints `usage`, then every flag that our own files define, with its
//              default, and exits with 0;
//   --version  prints the program's name and version, and exits with 0;
//   an unknown flag or a value that doesn't parse: says so, and exits with 2.
// `usage` says in a line what the program does, then gives the synopsis and examples.
// Returns what isn't a flag, without the program's name; more than max_arguments are an
// error.
std::vector<std::string_view> ParseCommandLine(int argc, char** argv,
                                               std::string_view usage,
                                               size_t max_arguments = 0);

// Prints "<program>: <message>" and a pointer to --help, and exits with 2: for flags that
// parse but don't make sense.
[[noreturn]] void ExitWithUsageError(std::string_view message);

// The value of a flag that is a size in GiB, in bytes; exits as above if it is no size.
uint64_t BytesOfGib(std::string_view flag, double gib);

}  // namespace moe
