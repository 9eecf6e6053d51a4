// Numbers for people to read.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace moe {

// "7,120"
std::string FormatCount(int64_t count);
// "850 ms", "3.4 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"; "unknown" for an infinite
// duration. Named unlike absl::FormatDuration, with which calls would be ambiguous.
std::string FormatTimeSpan(absl::Duration duration);
// "512 B", "1.2 GiB"
std::string FormatBytes(uint64_t bytes);

}  // namespace moe
