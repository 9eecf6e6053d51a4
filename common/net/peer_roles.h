// Who is at the other end of a call.
#pragma once

#include <grpcpp/security/auth_context.h>
#include <grpcpp/server_context.h>

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "common/net/roles.h"

namespace moe {

// Of the peer's certificate; nullopt where connections are in plaintext or in the process, and so
// everyone may do everything.
std::optional<RoleSet> PeerRoles(const grpc::AuthContext& context);
// "CN = w0", as its certificate has it.
std::string PeerName(const grpc::AuthContext& context);

// That the peer may speak for a member, "worker/w0" or "server/s1", or one yet to be named, "worker/":
// PERMISSION_DENIED unless its certificate has that role.
absl::Status CheckSpeaksFor(const grpc::ServerContext& context, std::string_view member);

}  // namespace moe
