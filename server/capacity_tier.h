// Memory in a file, for experts that a host's RAM does not hold: address space for all of them,
// disk for those that have been touched. The kernel keeps in RAM what it has room for.
//
// The file has no name, so that a process that dies leaves nothing on the disk. It is no
// checkpoint: what must survive is in shard files.
#pragma once

#include <cstddef>
#include <cstdint>
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

  struct Options {
    // Where the file lies; exists.
    std::string folder;
    // What the file may take of the disk.
    int64_t disk_bytes = 0;
  };

  // address_bytes: of all that will be reserved. An error names the folder.
  static absl::StatusOr<std::unique_ptr<CapacityTier>> Create(Options options,
                                                              int64_t address_bytes);
  ~CapacityTier();
  CapacityTier(const CapacityTier&) = delete;
  CapacityTier& operator=(const CapacityTier&) = delete;

  // The next `bytes` of the address space, at most what is left of it. Not to be read or
  // written before Allocate. Not thread-safe.
  char* Reserve(int64_t bytes);
  // Takes disk for bytes that are reserved and not allocated yet; they are zeros. Any
  // thread. RESOURCE_EXHAUSTED: the budget or the disk has no room for them, nothing has
  // changed; with the figures.
  absl::Status Allocate(char* begin, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  // Bytes that are allocated will be needed soon: begins to read what isn't in RAM. Any thread.
  void Prefetch(char* begin, int64_t bytes) const;

  const Options& options() const { return options_; }
  // Any thread.
  int64_t allocated() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  CapacityTier(Options options, int fd, char* data, int64_t size)
      : options_(std::move(options)), fd_(fd), data_(data), size_(size) {}

  absl::Status TakeDisk(char* begin, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  const Options options_;
  const int fd_;
  char* const data_;
  const int64_t size_;
  int64_t reserved_ = 0;
  mutable absl::Mutex mutex_;
  int64_t allocated_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace moe
