// What a process shows its peers, and demands of them, when its connections are secured by
// mutual TLS (docs/design/security.md). Where one of these is passed, null stands for plaintext.
#pragma once

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/net/roles.h"

namespace moe {

// Paths of PEM files.
struct TlsFiles {
  std::string ca = {};  // certificates of those that sign the peers' certificates
  std::string certificate = {};  // this process's own, the chain to a CA after it
  std::string key = {};          // of the own certificate, without a passphrase
};

// Thread-safe.
class TlsCredentials {
 public:
  // Null if no file is named. INVALID_ARGUMENT or FAILED_PRECONDITION, with the flag and the file, if
  // some are missing, can't be read, don't belong together or aren't valid now, or if the
  // certificate has none of the roles in `own`. Files are read again, about once a second, as long
  // as the object or what came of it lives: new connections use what is there then.
  static absl::StatusOr<std::shared_ptr<const TlsCredentials>> Load(const TlsFiles& files,
                                                                    RoleSet own);

  const TlsFiles& files() const { return files_; }
  // Demands a certificate of every client, and of each call a role that may make it.
  std::shared_ptr<grpc::ServerCredentials> ForServer() const;
  // Demands a certificate with the role of the peer, for its host unless check_host is false.
  std::shared_ptr<grpc::ChannelCredentials> ForChannelTo(Role peer,
                                                         bool check_host) const;

 private:
  explicit TlsCredentials(const TlsFiles& files);

  const TlsFiles files_;
  const std::shared_ptr<grpc::experimental::FileWatcherCertificateProvider> provider_;
};

}  // namespace moe
