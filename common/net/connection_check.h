// Why a connection doesn't come about: gRPC tries again and again, and often can't say.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/net/roles.h"
#include "common/net/tls_credentials.h"

namespace moe {

// Connects to the address as MakeChannel's channel would, within `timeout`, and hangs up.
// UNAUTHENTICATED if the two ends don't agree on TLS, or one refuses the other's certificate: says
// which, and why. OK in all other cases, also if nobody listens there.
absl::Status CheckConnection(const std::string& address,
                             const std::shared_ptr<const TlsCredentials>& tls, Role peer,
                             absl::Duration timeout = absl::Seconds(2));

}  // namespace moe
