// Channels to other members.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>
#include <vector>

#include "common/net/roles.h"
#include "common/net/tls_credentials.h"

namespace moe {

// Of one message, either way.
inline constexpr int kMaxMessageBytes = 1 << 30;

// address is host:port or unix:path. Connects on the first call; a lost connection comes
// back within a second of its server. Each channel has a connection of its own. With `tls`
// the peer must have the role, and be the host that the address names.
std::shared_ptr<grpc::Channel> MakeChannel(
    const std::string& address, const std::shared_ptr<const TlsCredentials>& tls,
    Role peer);
// In plaintext.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

// Whether the address is unix:path.
bool IsUnixAddress(const std::string& address);

// The parts of "a:1,b:2", the addresses of several coordinators of which one leads.
std::vector<std::string> SplitAddresses(const std::string& addresses);

}  // namespace moe
