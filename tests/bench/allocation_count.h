// Counts what the whole program, with its libraries, takes from malloc.
#pragma once

#include <cstdint>

namespace moe {

struct AllocationCount {
  int64_t allocations = 0;
  int64_t bytes = 0;
};

// Since the program began. Any thread.
AllocationCount CountAllocations();

}  // namespace moe
