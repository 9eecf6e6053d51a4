#include "common/net/net_flags.h"

#include <string>

#include "absl/flags/flag.h"

ABSL_FLAG(
    std::string, tls_ca, "",
    "PEM file with the certificates of those who sign the peers' certificates. With "
    "--tls_cert and --tls_key every connection is encrypted, and both ends show a "
    "certificate. Files that change are read again. Empty, as the other two: plaintext.");
ABSL_FLAG(
    std::string, tls_cert, "",
    "PEM file with this process's certificate, and those between it and a CA after it. "
    "It names the host, and its role in a URI like switchyard:role=worker.");
ABSL_FLAG(std::string, tls_key, "",
          "PEM file with the private key of --tls_cert, without a passphrase.");

namespace moe {

absl::StatusOr<std::shared_ptr<const TlsCredentials>> TlsFromFlags(RoleSet own) {
  return TlsCredentials::Load({.ca = absl::GetFlag(FLAGS_tls_ca),
                               .certificate = absl::GetFlag(FLAGS_tls_cert),
                               .key = absl::GetFlag(FLAGS_tls_key)},
                              own);
}

}  // namespace moe
