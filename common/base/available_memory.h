// How much memory this machine can still give.
#pragma once

#include <cstdint>
#include <string>

namespace moe {

struct AvailableMemory {
  // What can be allocated without swapping; 0: unknown.
  int64_t bytes = 0;
  // The same for all processes of a machine, and for no other machine's.
  std::string machine;
};

// proc: the folder /proc, or another one in its place.
AvailableMemory ReadAvailableMemory(const std::string& proc = "/proc");

}  // namespace moe
