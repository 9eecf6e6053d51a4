#include "common/net/tls_credentials.h"

#include <glog/logging.h>
#include <grpcpp/security/auth_metadata_processor.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/crypto.h>

#include <functional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/io/file.h"
#include "common/net/certificate.h"
#include "common/net/grpc_status.h"
#include "common/net/peer_roles.h"

namespace moe {
namespace {

constexpr unsigned kRefreshSeconds = 1;
constexpr absl::Duration kExpiresSoon = absl::Hours(7 * 24);

std::string_view ToStd(grpc::string_ref text) { return {text.data(), text.size()}; }

// What a client demands of a server besides its CA's signature.
class PeerVerifier final : public grpc::experimental::ExternalCertificateVerifier {
 public:
  PeerVerifier(Role role, bool check_host) : role_(role), check_host_(check_host) {}

  bool Verify(grpc::experimental::TlsCustomVerificationCheckRequest* request,
              std::function<void(grpc::Status)>, grpc::Status* status) override {
    *status = ToGrpcStatus(Check(*request));
    return true;
  }
  void Cancel(grpc::experimental::TlsCustomVerificationCheckRequest*) override {}

 private:
  absl::Status Check(
      const grpc::experimental::TlsCustomVerificationCheckRequest& request) const {
    ASSIGN_OR_RETURN(const std::vector<Certificate> chain,
                     Certificate::ParseAll(ToStd(request.peer_cert())));
    RETURN_IF_ERROR(chain[0].CheckRole({role_}));
    if (!check_host_) return absl::OkStatus();
    return chain[0].CheckHost(std::string(ToStd(request.target_name())));
  }

  const Role role_;
  const bool check_host_;
};

// Looks at every call before its handler does, and at those that have none.
class MethodGuard final : public grpc::AuthMetadataProcessor {
 public:
  bool IsBlocking() const override { return false; }

  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext* context,
                       OutputMetadata*, OutputMetadata*) override {
    const auto path = metadata.find(":path");
    return ToGrpcStatus(CheckMethod(
        path == metadata.end() ? "a call without a method" : ToStd(path->second),
        PeerRoles(*context).value_or(RoleSet()), PeerName(*context)));
  }
};

}  // namespace

absl::StatusOr<std::shared_ptr<const TlsCredentials>> TlsCredentials::Load(
    const TlsFiles& files, RoleSet own) {
  std::vector<std::string> given;
  std::vector<std::string> missing;
  (files.ca.empty() ? missing : given).push_back("--tls_ca");
  (files.certificate.empty() ? missing : given).push_back("--tls_cert");
  (files.key.empty() ? missing : given).push_back("--tls_key");
  if (given.empty()) return nullptr;
  // gRPC's threads may still shake hands while the process ends, when OpenSSL would free what they use.
  OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, nullptr);
  if (!missing.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(absl::StrJoin(given, " and "), " without ",
                     absl::StrJoin(missing, " and "), ": TLS needs all three"));
  }
  const absl::Time now = absl::Now();
  const auto read = [&](const char* flag, const std::string& path) {
    const absl::StatusOr<std::string> text = ReadFile(path);
    return text.ok() ? text
                     : absl::InvalidArgumentError(
                           absl::StrCat(flag, ": ", text.status().message()));
  };
  const auto parse =
      [&](const char* flag,
          const std::string& path) -> absl::StatusOr<std::vector<Certificate>> {
    ASSIGN_OR_RETURN(const std::string text, read(flag, path));
    absl::StatusOr<std::vector<Certificate>> all = Certificate::ParseAll(text);
    if (!all.ok()) return Annotate(all.status(), absl::StrCat(flag, ": ", path));
    return all;
  };
  ASSIGN_OR_RETURN(const std::vector<Certificate> authorities,
                   parse("--tls_ca", files.ca));
  absl::Status valid;
  for (const Certificate& authority : authorities) {
    valid = authority.CheckTime(now);
    if (valid.ok()) break;
  }
  RETURN_IF_ERROR(
      Annotate(valid, absl::StrCat("--tls_ca: every certificate in ", files.ca,
                                   " is out of its time; the last")));
  ASSIGN_OR_RETURN(const std::vector<Certificate> chain,
                   parse("--tls_cert", files.certificate));
  const std::string certificate = absl::StrCat("--tls_cert: ", files.certificate);
  RETURN_IF_ERROR(Annotate(chain[0].CheckTime(now), certificate));
  ASSIGN_OR_RETURN(const std::string key, read("--tls_key", files.key));
  RETURN_IF_ERROR(Annotate(chain[0].CheckKey(key),
                           absl::StrCat("--tls_key: ", files.key, " (with --tls_cert ",
                                        files.certificate, ")")));
  if (const absl::Status role = chain[0].CheckRole(own); !role.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat(certificate, " isn't for this program: ", role.message()));
  }
  if (chain[0].not_after() - now < kExpiresSoon) {
    LOG(WARNING) << certificate << " expires soon: " << chain[0].Describe();
  }
  return std::shared_ptr<const TlsCredentials>(new TlsCredentials(files));
}

TlsCredentials::TlsCredentials(const TlsFiles& files)
    : files_(files),
      provider_(std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
          files.key, files.certificate, files.ca, kRefreshSeconds)) {}

std::shared_ptr<grpc::ServerCredentials> TlsCredentials::ForServer() const {
  grpc::experimental::TlsServerCredentialsOptions options(provider_);
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_cert_request_type(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  std::shared_ptr<grpc::ServerCredentials> credentials =
      grpc::experimental::TlsServerCredentials(options);
  credentials->SetAuthMetadataProcessor(std::make_shared<MethodGuard>());
  return credentials;
}

std::shared_ptr<grpc::ChannelCredentials> TlsCredentials::ForChannelTo(
    Role peer, bool check_host) const {
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(provider_);
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_certificate_verifier(
      grpc::experimental::ExternalCertificateVerifier::Create<PeerVerifier>(peer,
                                                                            check_host));
  // The verifier has seen to the host.
  options.set_check_call_host(false);
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace moe
