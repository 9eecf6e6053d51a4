#include "common/net/connection_check.h"

#include <fcntl.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/io/file.h"
#include "common/net/certificate.h"

namespace moe {
namespace {

// ALPN's name of HTTP/2, its length before it.
constexpr unsigned char kHttp2[] = {2, 'h', '2'};

// "[::1]:80" is "::1" and "80".
std::pair<std::string, std::string> SplitAddress(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == address.npos) return {address, ""};
  std::string host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  return {host, address.substr(colon + 1)};
}

// Waits until the socket may be read or written; false after the deadline.
bool Await(int fd, short events, absl::Time deadline) {
  pollfd waiting = {.fd = fd, .events = events, .revents = 0};
  while (true) {
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    const int ready = poll(&waiting, 1, static_cast<int>(std::max<int64_t>(left, 0)));
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

int ConnectTo(const sockaddr* address, socklen_t size, absl::Time deadline) {
  const int fd =
      socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  if (connect(fd, address, size) == 0) return fd;
  if (errno == EINPROGRESS && Await(fd, POLLOUT, deadline)) {
    int error = 0;
    socklen_t error_size = sizeof(error);
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &error_size) == 0 && error == 0) {
      return fd;
    }
  }
  close(fd);
  return -1;
}

// A connected socket, or -1.
int Connect(const std::string& address, absl::Time deadline) {
  absl::string_view path = address;
  if (absl::ConsumePrefix(&path, "unix:")) {
    sockaddr_un unix_address = {};
    unix_address.sun_family = AF_UNIX;
    if (path.size() >= sizeof(unix_address.sun_path)) return -1;
    std::memcpy(unix_address.sun_path, path.data(), path.size());
    return ConnectTo(reinterpret_cast<sockaddr*>(&unix_address), sizeof(unix_address),
                     deadline);
  }
  const auto [host, port] = SplitAddress(address);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return -1;
  const absl::Cleanup freer = [found] { freeaddrinfo(found); };
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    const int fd = ConnectTo(info->ai_addr, info->ai_addrlen, deadline);
    if (fd >= 0) return fd;
  }
  return -1;
}

// OpenSSL writes to sockets in a way that ends the process when the peer has hung up.
class NoBrokenPipes {
 public:
  NoBrokenPipes() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    sigset_t pending;
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  ~NoBrokenPipes() {
    const timespec now = {};
    while (!was_pending_ && sigtimedwait(&pipe_, nullptr, &now) == SIGPIPE) {
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  NoBrokenPipes(const NoBrokenPipes&) = delete;
  NoBrokenPipes& operator=(const NoBrokenPipes&) = delete;

 private:
  sigset_t pipe_ = {};
  sigset_t before_ = {};
  bool was_pending_ = false;
};

// One attempt to speak TLS.
class Handshake {
 public:
  Handshake(int fd, absl::Time deadline)
      : fd_(fd),
        deadline_(deadline),
        context_(SSL_CTX_new(TLS_client_method()), SSL_CTX_free),
        ssl_(nullptr, SSL_free) {}

  // False if a file can't be used; then its owner has to know already.
  bool UseFiles(const TlsFiles& files) {
    SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER, nullptr);
    return SSL_CTX_load_verify_locations(context_.get(), files.ca.c_str(), nullptr) ==
               1 &&
           SSL_CTX_use_certificate_chain_file(context_.get(),
                                              files.certificate.c_str()) == 1 &&
           SSL_CTX_use_PrivateKey_file(context_.get(), files.key.c_str(),
                                       SSL_FILETYPE_PEM) == 1;
  }

  // SSL_ERROR_NONE, or how it failed.
  int Shake() {
    ssl_.reset(SSL_new(context_.get()));
    SSL_set_fd(ssl_.get(), fd_);
    SSL_set_alpn_protos(ssl_.get(), kHttp2, sizeof(kHttp2));
    return Repeat([this] { return SSL_connect(ssl_.get()); });
  }

  // A server that doesn't like our certificate says so, or hangs up, when we think that all is
  // done. One that does speaks first.
  int AwaitData() {
    char byte = 0;
    return Repeat([&] { return SSL_read(ssl_.get(), &byte, 1); });
  }

  long verify_result() const { return SSL_get_verify_result(ssl_.get()); }
  X509* peer() const { return SSL_get0_peer_certificate(ssl_.get()); }

 private:
  template <typename Step>
  int Repeat(const Step& step) {
    while (true) {
      ERR_clear_error();
      const int result = step();
      if (result > 0) return SSL_ERROR_NONE;
      const int error = SSL_get_error(ssl_.get(), result);
      const bool reads = error == SSL_ERROR_WANT_READ;
      if (!reads && error != SSL_ERROR_WANT_WRITE) return error;
      if (!Await(fd_, reads ? POLLIN : POLLOUT, deadline_)) return error;
    }
  }

  const int fd_;
  const absl::Time deadline_;
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context_;
  std::unique_ptr<SSL, decltype(&SSL_free)> ssl_;
};

// What is wrong with our own certificate as far as we can see, after `reason`.
std::string WithOwnFault(const TlsFiles& files, std::string reason) {
  const absl::StatusOr<std::string> text = ReadFile(files.certificate);
  if (!text.ok()) return reason;
  const absl::StatusOr<std::vector<Certificate>> chain = Certificate::ParseAll(*text);
  if (!chain.ok()) return reason;
  const absl::Status time = (*chain)[0].CheckTime(absl::Now());
  return absl::StrCat(reason, " (", (*chain)[0].Describe(),
                      time.ok() ? "" : absl::StrCat("; it ", time.message()), ")");
}

absl::Status CheckTls(const std::string& address, const TlsFiles& files, Role peer,
                      int fd, absl::Time deadline) {
  Handshake handshake(fd, deadline);
  if (!handshake.UseFiles(files)) {
    ERR_clear_error();
    return absl::OkStatus();
  }
  const int shaken = handshake.Shake();
  if (shaken == SSL_ERROR_SSL) {
    const int reason = ERR_GET_REASON(ERR_peek_last_error());
    const std::string error = TakeOpenSslError();
    if (handshake.verify_result() != X509_V_OK) {
      return absl::UnauthenticatedError(absl::StrCat(
          "certificate of ", address,
          " was refused: ", X509_verify_cert_error_string(handshake.verify_result()),
          " (by --tls_ca ", files.ca, ")"));
    }
    if (reason >= SSL_AD_REASON_OFFSET) {
      return absl::UnauthenticatedError(
          WithOwnFault(files, absl::StrCat(address, " refused the certificate ",
                                           files.certificate, ": ", error)));
    }
    return absl::UnauthenticatedError(
        absl::StrCat(address, " doesn't speak TLS as this process does (", error,
                     "): give it --tls_ca, --tls_cert and --tls_key, too"));
  }
  if (shaken != SSL_ERROR_NONE) return absl::OkStatus();
  if (X509* const certificate = handshake.peer(); certificate != nullptr) {
    const Certificate theirs(certificate);
    absl::Status status = theirs.CheckRole({peer});
    if (status.ok() && !absl::StartsWith(address, "unix:")) {
      status = theirs.CheckHost(SplitAddress(address).first);
    }
    if (!status.ok()) {
      return absl::UnauthenticatedError(absl::StrCat("certificate of ", address,
                                                     " was refused: ", status.message(),
                                                     " (", theirs.Describe(), ")"));
    }
  }
  const int answer = handshake.AwaitData();
  if (answer == SSL_ERROR_NONE || answer == SSL_ERROR_WANT_READ) return absl::OkStatus();
  const std::string error = TakeOpenSslError();
  return absl::UnauthenticatedError(WithOwnFault(
      files, absl::StrCat(address, " refused the certificate ", files.certificate, ": ",
                          answer == SSL_ERROR_SSL ? error : "it hung up")));
}

}  // namespace

absl::Status CheckConnection(const std::string& address,
                             const std::shared_ptr<const TlsCredentials>& tls, Role peer,
                             absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  const int fd = Connect(address, deadline);
  if (fd < 0) return absl::OkStatus();
  const absl::Cleanup closer = [fd] { close(fd); };
  const NoBrokenPipes no_broken_pipes;
  if (tls != nullptr) return CheckTls(address, tls->files(), peer, fd, deadline);
  // Speaks TLS to find out whether the other end does.
  Handshake handshake(fd, deadline);
  const int shaken = handshake.Shake();
  const int reason = ERR_GET_REASON(ERR_peek_last_error());
  ERR_clear_error();
  const bool alert = shaken == SSL_ERROR_SSL && reason >= SSL_AD_REASON_OFFSET;
  if (shaken != SSL_ERROR_NONE && !alert) return absl::OkStatus();
  return absl::UnauthenticatedError(
      absl::StrCat(address,
                   " speaks TLS and this process doesn't: give it --tls_ca, "
                   "--tls_cert and --tls_key"));
}

}  // namespace moe
