#include "common/net/rpc_server.h"

#include <glog/logging.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"
#include "common/net/channel.h"

namespace moe {
namespace {

constexpr char kUnixPrefix[] = "unix:";

absl::Status BadAddress(const std::string& listen, const std::string& why) {
  return absl::InvalidArgumentError(
      absl::StrCat("cannot listen on \"", listen, "\": ", why,
                   "; give host:port (port 0: any) or unix:path"));
}

absl::Status Taken(const std::string& listen) {
  return absl::AlreadyExistsError(absl::StrCat(
      "cannot listen on ", listen, ": the address is in use by another process"));
}

// gRPC takes over the socket of a living server, and hides the cause of its own failures.
absl::Status CheckUnixAddress(const std::string& listen, const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty()) return BadAddress(listen, "no path");
  if (path.size() >= sizeof(address.sun_path)) {
    return BadAddress(listen, absl::StrCat("the path is longer than ",
                                           sizeof(address.sun_path) - 1, " bytes"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  std::error_code ignored;
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder, ignored)) {
    return BadAddress(listen, absl::StrCat("there is no folder ", folder.string()));
  }
  const std::filesystem::file_status there = std::filesystem::status(path, ignored);
  if (std::filesystem::exists(there) && !std::filesystem::is_socket(there)) {
    return BadAddress(listen, absl::StrCat(path, " is there and isn't a socket"));
  }
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::ErrnoToStatus(errno, "no socket");
  const absl::Cleanup closer = [fd] { close(fd); };
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    return Taken(listen);
  }
  return absl::OkStatus();
}

// Tries to bind every address that the host stands for. gRPC is content with one of them,
// so a server on "localhost" could start without 127.0.0.1, and doesn't say why it
// couldn't at all.
absl::Status CheckTcpAddress(const std::string& listen, std::string* host) {
  const size_t colon = listen.rfind(':');
  if (colon == listen.npos) return BadAddress(listen, "no port");
  *host = listen.substr(0, colon);
  const std::string port = listen.substr(colon + 1);
  int number = 0;
  if (!absl::SimpleAtoi(port, &number) || number < 0 || number > 65535) {
    return BadAddress(listen, absl::StrCat("\"", port, "\" is no port"));
  }
  std::string node = *host;
  if (node.size() >= 2 && node.front() == '[' && node.back() == ']') {
    node = node.substr(1, node.size() - 2);
  } else if (node.find(':') != node.npos) {
    return BadAddress(listen, "an IPv6 address stands in brackets");
  }
  if (node.empty()) return BadAddress(listen, "no host");

  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(node.c_str(), port.c_str(), &hints, &found);
      error != 0) {
    return BadAddress(listen, absl::StrCat("host ", node, ": ", gai_strerror(error)));
  }
  const absl::Cleanup freer = [found] { freeaddrinfo(found); };
  int last_error = 0;
  bool bound = false;
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    const int fd =
        socket(info->ai_family, info->ai_socktype | SOCK_CLOEXEC, info->ai_protocol);
    const absl::Cleanup closer = [fd] {
      if (fd >= 0) close(fd);
    };
    const int yes = 1;
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    if (fd >= 0 && bind(fd, info->ai_addr, info->ai_addrlen) == 0) {
      bound = true;
      continue;
    }
    last_error = errno;
    if (last_error == EADDRINUSE) return Taken(listen);
  }
  if (bound) return absl::OkStatus();
  if (last_error == EADDRNOTAVAIL) {
    return BadAddress(listen, absl::StrCat(node, " is no address of this machine"));
  }
  return absl::ErrnoToStatus(last_error, absl::StrCat("cannot listen on ", listen));
}

void EnableServerPlugins() {
  static const bool once = [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  (void)once;
}

}  // namespace

RpcServer::RpcServer(std::string address, std::unique_ptr<grpc::Server> server)
    : address_(std::move(address)), server_(std::move(server)) {}

RpcServer::~RpcServer() { Shutdown(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(
    const std::string& listen, std::span<grpc::Service* const> services) {
  absl::string_view path = listen;
  const bool is_unix = absl::ConsumePrefix(&path, kUnixPrefix);
  std::string host;
  RETURN_IF_ERROR(is_unix ? CheckUnixAddress(listen, std::string(path))
                          : CheckTcpAddress(listen, &host));

  EnableServerPlugins();
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  // Two servers on one port would each get some of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Admit the keepalive of MakeChannel: its calls may wait for minutes without data.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  int port = -1;
  builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  // Unix sockets have no port; gRPC then says 1.
  if (server == nullptr || port <= 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", listen, ": gRPC refused it"));
  }
  return std::unique_ptr<RpcServer>(
      new RpcServer(is_unix ? listen : absl::StrCat(host, ":", port), std::move(server)));
}

std::shared_ptr<grpc::Channel> RpcServer::InProcessChannel() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  return server_->InProcessChannel(arguments);
}

void RpcServer::SetServing(const std::string& service, bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(service, serving);
}

void RpcServer::Shutdown(absl::Duration grace) {
  // gRPC ignores a second call, but then Wait alone still sees to the handlers.
  server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
  server_->Wait();
}

}  // namespace moe
