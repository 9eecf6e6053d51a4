// Preloaded into a process (LD_PRELOAD), counts what it allocates: calls of malloc and its kin and of
// anonymous mmap, and those of them of 4 KiB or more, which a tensor's are. The counts are a shared file,
// $ALLOCATION_COUNTS, of two uint64, so that anyone can read them at any time.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr size_t kLarge = 4096;

struct Counts {
  std::atomic<uint64_t> all;
  std::atomic<uint64_t> large;
};
// Before the file is there.
Counts early;
std::atomic<Counts*> counts{&early};

void Count(size_t bytes) {
  Counts& to = *counts.load(std::memory_order_relaxed);
  to.all.fetch_add(1, std::memory_order_relaxed);
  if (bytes >= kLarge) to.large.fetch_add(1, std::memory_order_relaxed);
}

__attribute__((constructor)) void Open() {
  const char* const path = std::getenv("ALLOCATION_COUNTS");
  if (path == nullptr) return;
  const int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (file < 0 || ftruncate(file, sizeof(Counts)) != 0) {
    std::perror(path);
    std::exit(1);
  }
  void* const shared =
      mmap(nullptr, sizeof(Counts), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (shared == MAP_FAILED) {
    std::perror(path);
    std::exit(1);
  }
  counts = static_cast<Counts*>(shared);
}

}  // namespace

extern "C" {

// glibc's own, by the names that it keeps for whoever replaces malloc.
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

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

void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }

int posix_memalign(void** memory, size_t alignment, size_t bytes) {
  *memory = memalign(alignment, bytes);
  return *memory == nullptr ? ENOMEM : 0;
}

void* mmap(void* address, size_t bytes, int protection, int flags, int file,
           off_t offset) {
  using Mmap = void* (*)(void*, size_t, int, int, int, off_t);
  static const auto real = reinterpret_cast<Mmap>(dlsym(RTLD_NEXT, "mmap"));
  if ((flags & MAP_ANONYMOUS) != 0) Count(bytes);
  return real(address, bytes, protection, flags, file, offset);
}

}  // extern "C"
