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

CapacityTier::System CapacityTier::RealSystem() {
  return {.fallocate = [](int fd, int mode, int64_t offset,
                          int64_t bytes) { return ::fallocate(fd, mode, offset, bytes); },
          .madvise = [](void* begin, size_t bytes,
                        int advice) { return ::madvise(begin, bytes, advice); }};
}

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
  // Else a fault reads, or makes zeros of, much that lies around the page. Whoever needs a matrix
  // says so (Prefetch).
  options.system.madvise(data, size, MADV_RANDOM);
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
  const absl::Status status = Populate(begin, bytes);
  if (status.ok()) return absl::OkStatus();
  GiveBack(begin, bytes);
  absl::MutexLock lock(&mutex_);
  allocated_ -= bytes;
  return status;
}

void CapacityTier::Prefetch(const char* begin, int64_t bytes) const {
  const int64_t first = (begin - data_) / kPage * kPage;
  const int64_t end = InPages(begin - data_ + bytes);
  // Advice only: what isn't read ahead is read when it is needed.
  options_.system.madvise(data_ + first, end - first, MADV_WILLNEED);
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
  int error = 0;
  do {
    error = options_.system.fallocate(fd_, 0, begin - data_, bytes) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error != 0) {
    GiveBack(begin, bytes);
    return CannotTake(error, bytes);
  }
  allocated_ += bytes;
  return absl::OkStatus();
}

void CapacityTier::GiveBack(char* begin, int64_t bytes) const {
  constexpr int kMode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  int error = 0;
  do {
    error = options_.system.fallocate(fd_, kMode, begin - data_, bytes) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error != 0 && error != EOPNOTSUPP) {
    LOG(WARNING) << absl::ErrnoToStatus(
                        error, absl::StrCat("cannot give back disk in ", options_.folder))
                        .message();
  }
}

absl::Status CapacityTier::CannotTake(int error, int64_t bytes) const {
  const std::string cause = absl::StrCat(
      "cannot take another ", FormatBytes(bytes), " of the disk in ", options_.folder,
      ", where the experts that were touched have ", FormatBytes(allocated_));
  const absl::Status status = absl::ErrnoToStatus(error, cause);
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(
          absl::StrCat(status.message(), "; make room, or resume on more servers"));
    case EFBIG:
      return absl::ResourceExhaustedError(
          absl::StrCat(status.message(),
                       "; raise the limit on the size of files, give a --disk_dir on "
                       "another file system, or resume on more servers"));
    case EOPNOTSUPP:
    case ENOSYS:
      return absl::FailedPreconditionError(absl::StrCat(
          status.message(),
          "; give a --disk_dir on a file system that can reserve room: ext4 or xfs"));
    default:
      return absl::Status(
          status.code(),
          absl::StrCat(status.message(),
                       "; is the disk in order? Resume with another --disk_dir"));
  }
}

absl::Status CapacityTier::Populate(char* begin, int64_t bytes) const {
  int error = 0;
  do {
    error = options_.system.madvise(begin, bytes, MADV_POPULATE_WRITE) == 0 ? 0 : errno;
  } while (error == EINTR);
  // Kernels before 5.14 don't know it.
  if (error == 0 || error == EINVAL) return absl::OkStatus();
  const absl::Status status = absl::ErrnoToStatus(
      error, absl::StrCat("cannot make ", FormatBytes(bytes), " of pages of the file in ",
                          options_.folder, ", of which the disk has been taken"));
  if (error == ENOMEM) {
    return absl::ResourceExhaustedError(
        absl::StrCat(status.message(), "; the server needs more memory"));
  }
  return absl::Status(
      status.code(),
      absl::StrCat(status.message(),
                   "; is the disk in order? Resume with another --disk_dir"));
}

int64_t CapacityTier::allocated() const {
  absl::MutexLock lock(&mutex_);
  return allocated_;
}

}  // namespace moe
