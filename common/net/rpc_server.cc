#include "common/net/rpc_server.h"

#include <glog/logging.h>
#include <grpcpp/ext/channelz_service_plugin.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_builder_plugin.h>
#include <grpcpp/resource_quota.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/available_memory.h"
#include "common/base/status_macros.h"
#include "common/net/channel.h"
#include "common/net/peer_limit.h"

namespace moe {
namespace {

constexpr char kUnixPrefix[] = "unix:";

// ---- limits; docs/design/security.md has all of them
// Calls of one connection at a time: members have a handful.
constexpr int kMaxStreams = 100;
constexpr int kMaxMetadataBytes = 16 << 10;
constexpr int kHandshakeTimeoutMs = 10'000;
// Without any call.
constexpr int kMaxIdleMs = 600'000;
// After silence it asks a peer whether it is still there.
constexpr int kKeepaliveMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 20'000;
// Members ping after 20 s (channel.cc). A peer that pings more often is cut off.
constexpr int kMinPingMs = 5'000;
constexpr int kMaxPingStrikes = 5;
// A call that is held back or streams takes one.
constexpr int kMaxThreads = 2000;
// Of one host, so that others can always call.
constexpr int kMaxCallsOfHost = kMaxThreads / 2;
// A memory limit of less would cut off members that do what they should.
constexpr int64_t kMinMemoryBytes = 2 * int64_t{kMaxMessageBytes};
constexpr int kMaxHealthMessageBytes = 4096;

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

bool IsLoopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    const auto* const v4 = reinterpret_cast<const sockaddr_in*>(address);
    return ntohl(v4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
  }
  const auto* const v6 = reinterpret_cast<const sockaddr_in6*>(address);
  return address->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

// Tries to bind every address that the host stands for. gRPC is content with one of them,
// so a server on "localhost" could start without 127.0.0.1, and doesn't say why it
// couldn't at all.
absl::Status CheckTcpAddress(const std::string& listen, std::string* host,
                             bool* loopback) {
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
  *loopback = true;
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
      *loopback = *loopback && IsLoopback(info->ai_addr);
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

// Which of gRPC's plugins a server has. They are made known for the whole process.
class Plugins final : public grpc::ServerBuilderOption {
 public:
  Plugins(bool reflection, bool channelz)
      : reflection_(reflection), channelz_(channelz) {}

  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(
      std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    if (!channelz_) plugins->clear();
    if (reflection_) {
      plugins->push_back(
          std::make_unique<grpc::reflection::ProtoServerReflectionPlugin>());
    }
  }

 private:
  const bool reflection_;
  const bool channelz_;
};

void EnableChannelz() {
  static const bool once = [] {
    grpc::channelz::experimental::InitChannelzService();
    return true;
  }();
  (void)once;
}

void SetLimits(grpc::ServerBuilder& builder, int message_bytes, int64_t memory_bytes,
               int calls_of_host) {
  builder.SetMaxReceiveMessageSize(message_bytes);
  builder.SetMaxSendMessageSize(message_bytes);
  // Members don't compress; others could send a little that becomes a lot.
  for (const grpc_compression_algorithm algorithm :
       {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  }
  grpc::ResourceQuota quota;
  quota.Resize(memory_bytes).SetMaxThreads(kMaxThreads);
  builder.SetResourceQuota(quota);
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>>
      interceptors;
  interceptors.push_back(std::make_unique<PeerLimit>(calls_of_host));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  // Two servers on one port would each get some of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreams);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kMaxIdleMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Admit the keepalive of MakeChannel: its calls may wait for minutes without data.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, kMaxPingStrikes);
}

}  // namespace

RpcServer::RpcServer(Options options, std::string address,
                     std::unique_ptr<grpc::Server> server)
    : options_(std::move(options)),
      address_(std::move(address)),
      server_(std::move(server)) {}

RpcServer::~RpcServer() { Shutdown(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(
    const std::string& listen, std::span<grpc::Service* const> services) {
  return Start(listen, services, Options());
}

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(
    const std::string& listen, std::span<grpc::Service* const> services,
    Options options) {
  absl::string_view path = listen;
  const bool is_unix = absl::ConsumePrefix(&path, kUnixPrefix);
  std::string host;
  bool loopback = true;
  RETURN_IF_ERROR(is_unix ? CheckUnixAddress(listen, std::string(path))
                          : CheckTcpAddress(listen, &host, &loopback));
  if (!loopback && options.tls == nullptr && !options.insecure) {
    return absl::FailedPreconditionError(absl::StrCat(
        "cannot listen on ", listen,
        " without TLS, since other machines can reach it: give --tls_ca, --tls_cert and "
        "--tls_key, or, on a network that you trust, --insecure"));
  }
  if (options.memory_bytes == 0) {
    options.memory_bytes = ReadAvailableMemory().bytes / 2;
  }

  grpc::EnableDefaultHealthCheckService(true);
  if (options.channelz) EnableChannelz();
  grpc::ServerBuilder builder;
  SetLimits(builder, kMaxMessageBytes, std::max(options.memory_bytes, kMinMemoryBytes),
            options.calls_of_host == 0 ? kMaxCallsOfHost : options.calls_of_host);
  builder.SetOption(std::make_unique<Plugins>(options.reflection, options.channelz));
  int port = -1;
  builder.AddListeningPort(listen,
                           options.tls == nullptr ? grpc::InsecureServerCredentials()
                                                  : options.tls->ForServer(),
                           &port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  // Unix sockets have no port; gRPC then says 1.
  if (server == nullptr || port <= 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", listen, ": gRPC refused it"));
  }
  std::unique_ptr<RpcServer> started(
      new RpcServer(std::move(options), is_unix ? listen : absl::StrCat(host, ":", port),
                    std::move(server)));
  if (!started->options_.health_address.empty()) {
    RETURN_IF_ERROR(started->StartHealthServer());
  }
  for (const std::string& service : started->options_.health_of) {
    started->SetServing(service, true);
  }
  return started;
}

absl::Status RpcServer::StartHealthServer() {
  const std::string& listen = options_.health_address;
  std::string host;
  bool loopback = true;
  RETURN_IF_ERROR(
      Annotate(CheckTcpAddress(listen, &host, &loopback), "--health_address"));
  grpc::ServerBuilder builder;
  SetLimits(builder, kMaxHealthMessageBytes, kMinMemoryBytes, kMaxCallsOfHost);
  builder.SetOption(std::make_unique<Plugins>(false, false));
  int port = -1;
  builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
  builder.RegisterCallbackGenericService(&no_methods_);
  health_server_ = builder.BuildAndStart();
  if (health_server_ == nullptr || port <= 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on --health_address ", listen, ": gRPC refused it"));
  }
  health_address_ = absl::StrCat(host, ":", port);
  return absl::OkStatus();
}

std::vector<grpc::HealthCheckServiceInterface*> RpcServer::healths() const {
  std::vector<grpc::HealthCheckServiceInterface*> all;
  for (const std::unique_ptr<grpc::Server>* server : {&server_, &health_server_}) {
    if (*server != nullptr) all.push_back((*server)->GetHealthCheckService());
  }
  return all;
}

void RpcServer::SetServing(const std::string& service, bool serving) {
  for (grpc::HealthCheckServiceInterface* health : healths()) {
    health->SetServingStatus(service, serving);
  }
}

void RpcServer::StopServing() {
  // What is set afterwards has no effect.
  for (grpc::HealthCheckServiceInterface* health : healths()) health->Shutdown();
}

std::shared_ptr<grpc::Channel> RpcServer::InProcessChannel() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  return server_->InProcessChannel(arguments);
}

void RpcServer::Shutdown(absl::Duration grace) {
  StopServing();
  // gRPC ignores a second call, but then Wait alone still sees to the handlers.
  server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
  server_->Wait();
  if (health_server_ != nullptr) {
    health_server_->Shutdown(std::chrono::system_clock::now());
    health_server_->Wait();
  }
}

}  // namespace moe
