// A file that is open for reading. Errors name the path and give the system's text.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace moe {

class InputFile {
 public:
  // Anything that can be read: pipes and devices, too.
  static absl::StatusOr<InputFile> Open(const std::string& path);
  // INVALID_ARGUMENT if it is a folder, a pipe or a device; doesn't wait for a pipe's writer.
  static absl::StatusOr<InputFile> OpenRegular(const std::string& path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept
      : path_(std::move(other.path_)),
        descriptor_(std::exchange(other.descriptor_, -1)) {}
  InputFile& operator=(InputFile&&) = delete;

  // Owned by this object.
  int descriptor() const { return descriptor_; }
  absl::StatusOr<struct stat> Stat() const;
  // Bytes that were read from where the last read ended, at most `size`; 0 at the end.
  absl::StatusOr<size_t> Read(char* out, size_t size) const;
  // Exactly the `size` bytes from `offset` on; DATA_LOSS if the file ends before. Any thread.
  absl::Status ReadAt(uint64_t offset, char* out, size_t size) const;

 private:
  InputFile(std::string path, int descriptor)
      : path_(std::move(path)), descriptor_(descriptor) {}
  static absl::StatusOr<InputFile> OpenWith(const std::string& path, int flags);

  std::string path_;
  int descriptor_;
};

}  // namespace moe
