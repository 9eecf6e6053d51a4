#include "server/capacity_tier.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
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
  std::string path = absl::StrCat(options.folder, "/experts-XXXXXX");
  const int fd = mkostemp(path.data(), O_CLOEXEC);
  if (fd < 0) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("cannot create a file in ", options.folder));
  }
  unlink(path.c_str());
  std::unique_ptr<CapacityTier> tier(new CapacityTier(std::move(options), fd));
  if (address_bytes > 0) RETURN_IF_ERROR(tier->Extend(address_bytes));
  return tier;
}

CapacityTier::~CapacityTier() {
  for (const auto& [begin, segment] : segments_) munmap(segment.data, segment.size);
  close(fd_);
}

absl::Status CapacityTier::Extend(int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  Segment segment;
  segment.offset = file_bytes_;
  segment.size = InPages(std::max<int64_t>(bytes, 1));
  const int64_t end = segment.offset + segment.size;
  if (ftruncate(fd_, end) != 0) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("cannot make a file of ", FormatBytes(end),
                            ", none of it on the disk, in ", options_.folder));
  }
  void* data = mmap(nullptr, segment.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd_,
                    segment.offset);
  if (data == MAP_FAILED) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("cannot map ", FormatBytes(segment.size), " of a file in ",
                            options_.folder));
  }
  // Else a fault reads, or makes zeros of, much that lies around the page. Whoever needs a matrix
  // says so (Prefetch).
  options_.system.madvise(data, segment.size, MADV_RANDOM);
  file_bytes_ = end;
  segment.data = static_cast<char*>(data);
  last_ = &segments_.emplace(segment.data, segment).first->second;
  return absl::OkStatus();
}

char* CapacityTier::Reserve(int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  CHECK(last_ != nullptr);
  char* const begin = last_->data + last_->dealt;
  last_->dealt += InPages(bytes);
  last_->held += InPages(bytes);
  CHECK_LE(last_->dealt, last_->size);
  return begin;
}

void CapacityTier::Release(const char* begin, int64_t bytes) {
  Segment segment;
  {
    absl::MutexLock lock(&mutex_);
    Segment& of_begin = SegmentOf(begin);
    of_begin.held -= bytes;
    if (of_begin.held > 0 || of_begin.dealt < of_begin.size) return;
    segment = of_begin;
    if (last_ == &of_begin) last_ = nullptr;
    segments_.erase(segment.data);
  }
  munmap(segment.data, segment.size);
  GiveBack(segment.offset, segment.size);
  absl::MutexLock lock(&mutex_);
  allocated_ -= segment.allocated;
}

CapacityTier::Segment& CapacityTier::SegmentOf(const char* address) {
  auto after = segments_.upper_bound(address);
  CHECK(after != segments_.begin());
  return std::prev(after)->second;
}

absl::Status CapacityTier::Allocate(char* begin, int64_t bytes) {
  bytes = InPages(bytes);
  RETURN_IF_ERROR(TakeDisk(begin, bytes));
  const absl::Status status = Populate(begin, bytes);
  if (status.ok()) return absl::OkStatus();
  absl::MutexLock lock(&mutex_);
  Segment& segment = SegmentOf(begin);
  GiveBack(segment.offset + (begin - segment.data), bytes);
  segment.allocated -= bytes;
  allocated_ -= bytes;
  return status;
}

void CapacityTier::Prefetch(const char* begin, int64_t bytes) const {
  // Segments begin with a page.
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const auto skipped = static_cast<int64_t>(address % kPage);
  // Advice only: what isn't read ahead is read when it is needed.
  options_.system.madvise(const_cast<char*>(begin) - skipped, InPages(skipped + bytes),
                          MADV_WILLNEED);
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
  Segment& segment = SegmentOf(begin);
  const int64_t offset = segment.offset + (begin - segment.data);
  // Now, so that a full disk is an error here and no signal when a page is written back.
  int error = 0;
  do {
    error = options_.system.fallocate(fd_, 0, offset, bytes) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error != 0) {
    GiveBack(offset, bytes);
    return CannotTake(error, bytes);
  }
  segment.allocated += bytes;
  allocated_ += bytes;
  return absl::OkStatus();
}

void CapacityTier::GiveBack(int64_t offset, int64_t bytes) const {
  constexpr int kMode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  int error = 0;
  do {
    error = options_.system.fallocate(fd_, kMode, offset, bytes) == 0 ? 0 : errno;
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
