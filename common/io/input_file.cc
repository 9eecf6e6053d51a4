#include "common/io/input_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

absl::Status CannotRead(const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
}

}  // namespace

absl::StatusOr<InputFile> InputFile::OpenWith(const std::string& path, int flags) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | flags);
  if (descriptor < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  }
  return InputFile(path, descriptor);
}

absl::StatusOr<InputFile> InputFile::Open(const std::string& path) {
  return OpenWith(path, 0);
}

absl::StatusOr<InputFile> InputFile::OpenRegular(const std::string& path) {
  ASSIGN_OR_RETURN(InputFile file, OpenWith(path, O_NONBLOCK));
  ASSIGN_OR_RETURN(const struct stat info, file.Stat());
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot read ", path, ": not a regular file"));
  }
  return file;
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

absl::StatusOr<struct stat> InputFile::Stat() const {
  struct stat info;
  if (fstat(descriptor_, &info) != 0) return CannotRead(path_);
  return info;
}

absl::StatusOr<size_t> InputFile::Read(char* out, size_t size) const {
  while (true) {
    const ssize_t got = read(descriptor_, out, size);
    if (got >= 0) return static_cast<size_t>(got);
    if (errno != EINTR) return CannotRead(path_);
  }
}

absl::Status InputFile::ReadAt(uint64_t offset, char* out, size_t size) const {
  while (size > 0) {
    const ssize_t got = pread(descriptor_, out, size, static_cast<off_t>(offset));
    if (got < 0) {
      if (errno == EINTR) continue;
      return CannotRead(path_);
    }
    if (got == 0) {
      return absl::DataLossError(
          absl::StrCat("cannot read ", path_, ": it ends at byte ", offset));
    }
    out += got;
    offset += got;
    size -= got;
  }
  return absl::OkStatus();
}

}  // namespace moe
