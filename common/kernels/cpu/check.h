// Broken invariants of callers end the process.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace moe::cpu {

// (std::source_location is beyond Clang 14, which builds the fuzz targets.)
inline void Check(bool holds, const char* invariant, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE(),
                  const char* function = __builtin_FUNCTION()) {
  if (holds) [[likely]]
    return;
  std::fprintf(stderr, "%s:%d: %s: violated: %s\n", file, line, function, invariant);
  std::abort();
}

}  // namespace moe::cpu
