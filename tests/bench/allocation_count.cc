#include "tests/bench/allocation_count.h"

#include <atomic>
#include <cstddef>

// glibc's own; a program may put others before them.
extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* memory, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);
}

namespace {

std::atomic<int64_t> allocations{0};
std::atomic<int64_t> allocated{0};

void Count(size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  allocated.fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed);
}

}  // namespace

extern "C" {

void* malloc(size_t bytes) {
  Count(bytes);
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  Count(count * bytes);
  return __libc_calloc(count, bytes);
}
void* realloc(void* memory, size_t bytes) {
  Count(bytes);
  return __libc_realloc(memory, bytes);
}
void* memalign(size_t alignment, size_t bytes) {
  Count(bytes);
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  Count(bytes);
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** memory, size_t alignment, size_t bytes) {
  Count(bytes);
  *memory = __libc_memalign(alignment, bytes);
  return *memory == nullptr ? 12 : 0;  // ENOMEM
}

}  // extern "C"

namespace moe {

AllocationCount CountAllocations() { return {allocations.load(), allocated.load()}; }

}  // namespace moe
