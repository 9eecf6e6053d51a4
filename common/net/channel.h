// Channels to other members.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>
#include <vector>

namespace moe {

// Of one message, either way.
inline constexpr int kMaxMessageBytes = 1 << 30;

// address is host:port or unix:path. Connects on the first call; a lost connection comes
// back within a second of its server. Each channel has a connection of its own.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

// The parts of "a:1,b:2", the addresses of several coordinators of which one leads.
std::vector<std::string> SplitAddresses(const std::string& addresses);

}  // namespace moe
