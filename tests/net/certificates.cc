#include "tests/net/certificates.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"

namespace moe {

std::string MakeCertificates(const std::string& folder, const std::string& arguments) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/", folder);
  const std::string command = absl::StrCat("deploy/make_certificates.sh --out '", path,
                                           "' ", arguments, " >/dev/null");
  CHECK_EQ(std::system(command.c_str()), 0) << command;
  return path;
}

}  // namespace moe
