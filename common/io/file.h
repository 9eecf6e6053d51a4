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
// as it was before, or whole and new if it was only the folder that couldn't be made to last. The folder
// must exist. What is there and isn't a regular file is never replaced.
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

// Removes what WriteFileAtomically(path) left beside `path` in processes that were killed meanwhile.
// Nobody may be writing it now.
absl::Status RemoveUnfinished(const std::string& path);

// The same of all files in the folder. One that is being written fails, and isn't there.
absl::Status RemoveAllUnfinished(const std::string& folder);

// Creates the folder and its parents; OK if it is there. After OK they are on disk.
absl::Status MakeDirs(const std::string& path);

// Gives a folder another name, on disk after OK; both have the same parent. ALREADY_EXISTS or the like
// if there is something of that name.
absl::Status RenameFolder(const std::string& from, const std::string& to);

// Removes a file; OK if there is none. After OK it doesn't come back, also after a power cut.
absl::Status RemoveFile(const std::string& path);

// Removes a file or a folder with all its contents; OK if there is none. Doesn't follow
// links.
absl::Status RemoveTree(const std::string& path);

}  // namespace moe
