// Channels to other members.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>

namespace moe {

// Of one message, either way.
inline constexpr int kMaxMessageBytes = 1 << 30;

// address is host:port or unix:path. Connects on the first call; a lost connection comes
// back within a second of its server. Each channel has a connection of its own.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

}  // namespace moe
