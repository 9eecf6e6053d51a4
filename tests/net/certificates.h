// Certificates for tests, by deploy/make_certificates.sh.
#pragma once

#include <string>

#include "common/net/tls_credentials.h"

namespace moe {

// Runs it with these arguments for a folder of TEST_TMPDIR; the folder's path. Dies if it fails.
std::string MakeCertificates(const std::string& folder,
                             const std::string& arguments = "");

// The files of that name there.
inline TlsFiles FilesOf(const std::string& folder, const std::string& name) {
  return {.ca = folder + "/ca.crt",
          .certificate = folder + "/" + name + ".crt",
          .key = folder + "/" + name + ".key"};
}

}  // namespace moe
