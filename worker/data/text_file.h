// A UTF-8 text file, read line by line in bounded memory, as often as needed.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/io/input_file.h"

namespace moe {

class TextFile {
 public:
  // Longer lines are refused: what has no line ends would have to be in memory whole.
  static constexpr size_t kMaxLineBytes = size_t{16} << 20;

  // line is without its '\n'; number counts from 1.
  using LineFunction = std::function<absl::Status(std::string_view line, int64_t number)>;

  // Reads the file once, for its checksum. INVALID_ARGUMENT, with the line where there is
  // one, if it is empty, compressed, not UTF-8, not a regular file or has too long a
  // line. advance hears of bytes as they are read.
  static absl::StatusOr<TextFile> Open(const std::string& path,
                                       const std::function<void(int64_t bytes)>& advance);

  const std::string& path() const { return path_; }
  const std::string& sha256() const { return sha256_; }
  int64_t bytes() const { return identity_.bytes; }

  // Reads it again, until fn's first error. ABORTED if the file has changed since Open.
  absl::Status ForEachLine(const LineFunction& fn) const;

 private:
  // What the file system says of a file; equal for a file that nobody has changed.
  struct Identity {
    uint64_t device = 0;
    uint64_t inode = 0;
    int64_t bytes = 0;
    int64_t changed_seconds = 0;
    int64_t changed_nanoseconds = 0;

    bool operator==(const Identity&) const = default;
  };

  explicit TextFile(std::string path) : path_(std::move(path)) {}

  static absl::StatusOr<Identity> IdentityOf(const InputFile& file);
  // identity: out, if the file was the same from its first byte to its last.
  static absl::Status Read(const std::string& path,
                           const std::function<void(std::string_view)>& on_bytes,
                           const LineFunction& on_line, Identity& identity);

  std::string path_;
  std::string sha256_;
  Identity identity_;
};

}  // namespace moe
