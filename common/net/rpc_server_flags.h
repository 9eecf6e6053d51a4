// The flags of our servers about whom they serve: --insecure, --health_address, --reflection,
// --channelz, --stop_timeout, --rpc_memory_gib; and those of net_flags.h.
#pragma once

#include "absl/status/statusor.h"
#include "common/net/roles.h"
#include "common/net/rpc_server.h"

namespace moe {

// Call it after ParseCommandLine. Exits on values that don't make sense; errors are those of
// TlsCredentials::Load.
absl::StatusOr<RpcServer::Options> RpcServerOptionsFromFlags(RoleSet own);

}  // namespace moe
