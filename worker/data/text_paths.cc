#include "worker/data/text_paths.h"

#include <glob.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

absl::StatusOr<std::vector<std::string>> Expand(const std::string& pattern) {
  if (Exists(pattern) || pattern.find_first_of("*?[") == pattern.npos)
    return std::vector{pattern};
  glob_t matches = {};
  const absl::Cleanup freer = [&] { globfree(&matches); };
  const int error = glob(pattern.c_str(), GLOB_ERR | GLOB_NOSORT, nullptr, &matches);
  if (error == GLOB_NOMATCH)
    return absl::NotFoundError(absl::StrCat("no file matches ", pattern));
  if (error != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot list the files that match ", pattern));
  }
  std::vector<std::string> paths(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ExpandTextPaths(const std::string& patterns) {
  if (Exists(patterns)) return std::vector{patterns};
  std::vector<std::string> paths;
  for (const std::string& pattern :
       std::vector<std::string>(absl::StrSplit(patterns, ',', absl::SkipEmpty()))) {
    ASSIGN_OR_RETURN(const std::vector<std::string> matches, Expand(pattern));
    paths.insert(paths.end(), matches.begin(), matches.end());
  }
  return paths;
}

}  // namespace moe
