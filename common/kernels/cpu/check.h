// Broken invariants of callers end the process.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <source_location>

namespace moe::cpu {

inline void Check(bool holds, const char* invariant,
                  std::source_location where = std::source_location::current()) {
  if (holds) [[likely]]
    return;
  std::fprintf(stderr, "%s:%u: %s: violated: %s\n", where.file_name(),
               static_cast<unsigned>(where.line()), where.function_name(), invariant);
  std::abort();
}

}  // namespace moe::cpu
