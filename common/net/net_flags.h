// The flags of our programs about connections: --tls_ca, --tls_cert, --tls_key.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "common/net/roles.h"
#include "common/net/tls_credentials.h"

namespace moe {

// What the flags name; null without any. Call it after ParseCommandLine. As TlsCredentials::Load.
absl::StatusOr<std::shared_ptr<const TlsCredentials>> TlsFromFlags(RoleSet own);

}  // namespace moe
