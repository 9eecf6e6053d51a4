// Memory in a file, for experts that a host's RAM does not hold: address space for all of them,
// disk for those that have been touched. The kernel keeps in RAM what it has room for.
//
// The file has no name, so that a process that dies leaves nothing on the disk. It is no
// checkpoint: what must survive is in shard files.
//
// Its file system must keep for good the blocks that fallocate took: ext4, xfs and tmpfs do (of
// tmpfs the memory is the disk). One that copies on write, as btrfs, may need more at every write
// back, and find none when it is too late for an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace moe {

class CapacityTier {
 public:
  // Addresses and sizes are multiples of it.
  static constexpr int64_t kPage = 4096;
  static int64_t InPages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

  // The system's calls of these names, which leave their error in errno; for tests.
  struct System {
    std::function<int(int fd, int mode, int64_t offset, int64_t bytes)> fallocate;
    std::function<int(void* begin, size_t bytes, int advice)> madvise;
  };
  static System RealSystem();

  struct Options {
    // Where the file lies; exists.
    std::string folder;
    // What the file may take of the disk.
    int64_t disk_bytes = 0;
    System system = RealSystem();
  };

  // With address space for so many bytes. An error names the folder.
  static absl::StatusOr<std::unique_ptr<CapacityTier>> Create(Options options,
                                                              int64_t address_bytes = 0);
  ~CapacityTier();
  CapacityTier(const CapacityTier&) = delete;
  CapacityTier& operator=(const CapacityTier&) = delete;

  // Adds a segment of address space for so many bytes, which Reserve deals out from now on. An error
  // names the folder.
  absl::Status Extend(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // The next `bytes` of the last segment, at most what is left of it. Not to be read or written
  // before Allocate. One thread between Extend and the last Reserve from it.
  char* Reserve(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Of one segment: reserved bytes that nobody will use any more. With the last of them the disk of
  // the whole segment is free. Any thread.
  void Release(const char* begin, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Takes disk for bytes that are reserved and not allocated yet; they are zeros. Any
  // thread. After an error nothing has changed. RESOURCE_EXHAUSTED: the budget or the disk has no
  // room for them; with the figures. Other errors have the system's text, and what to do.
  absl::Status Allocate(char* begin, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  // Bytes that are allocated will be needed soon, from anywhere in a page on: begins to read what
  // isn't in RAM. Any thread.
  void Prefetch(const char* begin, int64_t bytes) const;

  const Options& options() const { return options_; }
  // Any thread.
  int64_t allocated() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // A part of the file, and where it is mapped.
  struct Segment {
    char* data = nullptr;
    int64_t offset = 0;  // in the file
    int64_t size = 0;
    int64_t dealt = 0;
    // Reserved and not released.
    int64_t held = 0;
    int64_t allocated = 0;
  };

  CapacityTier(Options options, int fd) : options_(std::move(options)), fd_(fd) {}

  // The segment that has this address.
  Segment& SegmentOf(const char* address) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Status TakeDisk(char* begin, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Of bytes that fallocate was asked for: what it took, the whole or a part.
  void GiveBack(int64_t offset, int64_t bytes) const;
  // error: of fallocate.
  absl::Status CannotTake(int error, int64_t bytes) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // All pages at once, which is cheaper than a fault for each.
  absl::Status Populate(char* begin, int64_t bytes) const;

  const Options options_;
  const int fd_;
  mutable absl::Mutex mutex_;
  // By where they begin.
  std::map<const char*, Segment> segments_ ABSL_GUARDED_BY(mutex_);
  // Where Reserve takes from; null: nowhere.
  Segment* last_ ABSL_GUARDED_BY(mutex_) = nullptr;
  int64_t file_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t allocated_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace moe
