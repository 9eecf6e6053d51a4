// A certificate as people and peers see it, by OpenSSL.
#pragma once

#include <openssl/x509.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/net/roles.h"

namespace moe {

class Certificate {
 public:
  // All certificates of a PEM text, in its order; INVALID_ARGUMENT if there is none, or one is
  // damaged.
  static absl::StatusOr<std::vector<Certificate>> ParseAll(std::string_view pem);
  // Takes a reference of its own.
  explicit Certificate(X509* certificate);

  RoleSet roles() const;
  absl::Time not_before() const;
  absl::Time not_after() const;
  // FAILED_PRECONDITION "expired on ..", "isn't valid before .."
  absl::Status CheckTime(absl::Time now) const;
  // That it is for the host, a name or an IP address; the error names those that it is for.
  absl::Status CheckHost(const std::string& host) const;
  // That it has one of these roles.
  absl::Status CheckRole(RoleSet needed) const;
  // That the PEM text is its private key.
  absl::Status CheckKey(const std::string& pem) const;
  // "CN = w0, valid until 2027-03-01 12:00:00 UTC, role worker"
  std::string Describe() const;

 private:
  std::vector<std::string> Names(int type) const;

  std::shared_ptr<X509> certificate_;
};

// What OpenSSL last failed at in this thread, and nothing else from then on.
std::string TakeOpenSslError();

}  // namespace moe
