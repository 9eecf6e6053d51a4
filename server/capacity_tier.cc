#include "server/capacity_tier.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "glog/logging.h"

namespace moe {
absl::StatusOr<std::unique_ptr<CapacityTier>> CapacityTier::Create(
    Options options, int64_t address_bytes) {
  const int64_t size = InPages(std::max<int64_t>(address_bytes, 1));
  std::string path = absl::StrCat(options.folder, "/experts-XXXXXX");
  const int fd = mkostemp(path.data(), O_CLOEXEC);
  if (fd < 0) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("cannot create a file in ", options.folder));
  }
  unlink(path.c_str());
  if (ftruncate(fd, size) != 0) {
    const absl::Status status = absl::ErrnoToStatus(
        errno, absl::StrCat("cannot make a file of ", FormatBytes(size),
                            ", none of it on the "
                            "disk, in ",
                            options.folder));
    close(fd);
    return status;
  }
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    const absl::Status status = absl::ErrnoToStatus(
        errno,
        absl::StrCat("cannot map ", FormatBytes(size), " of a file in ", options.folder));
    close(fd);
    return status;
  }
  // Else a fault reads, or makes zeros of, much that lies around the page.
  madvise(data, size, MADV_RANDOM);
  return std::unique_ptr<CapacityTier>(
      new CapacityTier(std::move(options), fd, static_cast<char*>(data), size));
}

CapacityTier::~CapacityTier() {
  munmap(data_, size_);
  close(fd_);
}

char* CapacityTier::Reserve(int64_t bytes) {
  char* const begin = data_ + reserved_;
  reserved_ += InPages(bytes);
  CHECK_LE(reserved_, size_);
  return begin;
}

absl::Status CapacityTier::Allocate(char* begin, int64_t bytes) {
  bytes = InPages(bytes);
  RETURN_IF_ERROR(TakeDisk(begin, bytes));
  // All pages at once, which is cheaper than a fault for each. Older kernels don't know it.
  madvise(begin, bytes, MADV_POPULATE_WRITE);
  return absl::OkStatus();
}

void CapacityTier::Prefetch(char* begin, int64_t bytes) const {
  madvise(begin, InPages(bytes), MADV_WILLNEED);
}

absl::Status CapacityTier::TakeDisk(char* begin, int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  if (allocated_ + bytes > options_.disk_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the experts that were touched have ", FormatBytes(allocated_),
                     " in ", options_.folder, ", and another ", FormatBytes(bytes),
                     " would be more than the ", FormatBytes(options_.disk_bytes),
                     " of --disk_gib; raise it, or resume on more servers"));
  }
  // Now, so that a full disk is an error here and no signal when a page is written back.
  const int error = posix_fallocate(fd_, begin - data_, bytes);
  if (error != 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot take another ", FormatBytes(bytes), " of the disk in ", options_.folder,
        ", where the experts that were touched have ", FormatBytes(allocated_), ": ",
        absl::ErrnoToStatus(error, "").message(),
        "; make room, or resume on more servers"));
  }
  allocated_ += bytes;
  return absl::OkStatus();
}

int64_t CapacityTier::allocated() const {
  absl::MutexLock lock(&mutex_);
  return allocated_;
}

}  // namespace moe
