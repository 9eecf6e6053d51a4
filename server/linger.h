// The afterlife of a server under a supervisor that starts again what ends well.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "common/net/rpc_server.h"

namespace moe {

// Answers health checks at `listen` and options.health_address, as RpcServer does, and nothing
// else, until told_to_stop. Errors as of RpcServer::Start.
absl::Status LingerUntil(const absl::Notification& told_to_stop,
                         const std::string& listen, RpcServer::Options options);

}  // namespace moe
