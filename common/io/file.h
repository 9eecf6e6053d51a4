// Whole files and folders. Errors name the path and give the system's text.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace moe {

absl::StatusOr<std::string> ReadFile(const std::string& path);

// After OK the file is on disk whole; after an error, or a crash at any time, `path` is
// as it was before. The folder must exist. What is there and isn't a
// regular file is never replaced.
absl::Status WriteFileAtomically(const std::string& path, std::string_view contents);

// Appends to a file that isn't under its name yet.
class FileSink {
 public:
  virtual ~FileSink() = default;
  virtual absl::Status Append(std::string_view bytes) = 0;
};

// The same for contents that aren't in memory at once: `write` appends them.
absl::Status WriteFileAtomically(const std::string& path,
                                 const std::function<absl::Status(FileSink&)>& write);

// Creates the folder and its parents; OK if it is there. After OK they are on disk.
absl::Status MakeDirs(const std::string& path);

// Gives a folder another name, on disk after OK; both have the same parent. ALREADY_EXISTS or the like
// if there is something of that name.
absl::Status RenameFolder(const std::string& from, const std::string& to);

// Removes a file or a folder with all its contents; OK if there is none. Doesn't follow
// links.
absl::Status RemoveTree(const std::string& path);

}  // namespace moe
