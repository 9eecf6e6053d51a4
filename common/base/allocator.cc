#include "common/base/allocator.h"

#include <malloc.h>

namespace moe {

void KeepFreedMemory() {
  constexpr int kMiB = 1 << 20;
  mallopt(M_MMAP_THRESHOLD, 32 * kMiB);  // the most that glibc takes
  mallopt(M_TRIM_THRESHOLD, 1024 * kMiB);
  mallopt(M_TOP_PAD, 64 * kMiB);
  // A message is allocated by one thread and freed by another: with an arena for each thread the
  // memory would pile up where nobody asks for it.
  mallopt(M_ARENA_MAX, 1);
}

}  // namespace moe
