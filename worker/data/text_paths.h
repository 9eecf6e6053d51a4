// Text files by name.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace moe {

// The files that a flag names: paths, or patterns as the shell's ("news.en-*"; *, ? and
// [..]), with commas between them. They come in the order of the flag, those of a pattern
// by their names' bytes. What is the path of a file is that, whatever characters it has.
// NOT_FOUND if a pattern matches no file.
absl::StatusOr<std::vector<std::string>> ExpandTextPaths(const std::string& patterns);

}  // namespace moe
