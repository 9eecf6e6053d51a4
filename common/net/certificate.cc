#include "common/net/certificate.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <ctime>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace moe {
namespace {

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;

Bio Reader(std::string_view text) {
  return {BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), BIO_free};
}

// Daemons have nobody to ask.
int NoPassphrase(char*, int, int, void*) { return -1; }

absl::Time ToTime(const ASN1_TIME* time) {
  std::tm parts = {};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return absl::InfinitePast();
  return absl::FromTM(parts, absl::UTCTimeZone());
}

std::string FormatUtc(absl::Time time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", time, absl::UTCTimeZone());
}

bool IsIpAddress(const std::string& host) {
  unsigned char bytes[sizeof(in6_addr)];
  return inet_pton(AF_INET, host.c_str(), bytes) == 1 ||
         inet_pton(AF_INET6, host.c_str(), bytes) == 1;
}

}  // namespace

std::string TakeOpenSslError() {
  const unsigned long error = ERR_peek_last_error();
  ERR_clear_error();
  if (error == 0) return "";
  const char* const reason = ERR_reason_error_string(error);
  return reason != nullptr ? reason : absl::StrCat("OpenSSL error ", error);
}

absl::StatusOr<std::vector<Certificate>> Certificate::ParseAll(std::string_view pem) {
  const Bio bio = Reader(pem);
  std::vector<Certificate> all;
  ERR_clear_error();
  while (X509* const one = PEM_read_bio_X509(bio.get(), nullptr, NoPassphrase, nullptr)) {
    all.emplace_back(one);
    X509_free(one);
  }
  // The text's end, too, is an error to OpenSSL.
  const bool end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  const std::string error = TakeOpenSslError();
  if (all.empty() && end) return absl::InvalidArgumentError("holds no PEM certificate");
  if (!end) {
    return absl::InvalidArgumentError(
        absl::StrCat("PEM certificate ", all.size() + 1, " is damaged: ", error));
  }
  return all;
}

Certificate::Certificate(X509* certificate) : certificate_(certificate, X509_free) {
  X509_up_ref(certificate);
}

std::vector<std::string> Certificate::Names(int type) const {
  std::vector<std::string> names;
  auto* const all = static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate_.get(), NID_subject_alt_name, nullptr, nullptr));
  for (int i = 0; i < sk_GENERAL_NAME_num(all); ++i) {
    const GENERAL_NAME* const name = sk_GENERAL_NAME_value(all, i);
    if (name->type != type) continue;
    const ASN1_STRING* const text = type == GEN_IPADD ? name->d.iPAddress : name->d.ia5;
    std::string bytes(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
                      ASN1_STRING_length(text));
    if (type == GEN_IPADD) {
      char address[INET6_ADDRSTRLEN] = "?";
      const int family = bytes.size() == sizeof(in_addr) ? AF_INET : AF_INET6;
      if (bytes.size() == sizeof(in_addr) || bytes.size() == sizeof(in6_addr)) {
        inet_ntop(family, bytes.data(), address, sizeof(address));
      }
      bytes = address;
    }
    names.push_back(std::move(bytes));
  }
  GENERAL_NAMES_free(all);
  return names;
}

RoleSet Certificate::roles() const { return RolesOfUris(Names(GEN_URI)); }

absl::Time Certificate::not_before() const {
  return ToTime(X509_get0_notBefore(certificate_.get()));
}

absl::Time Certificate::not_after() const {
  return ToTime(X509_get0_notAfter(certificate_.get()));
}

absl::Status Certificate::CheckTime(absl::Time now) const {
  if (now > not_after()) {
    return absl::FailedPreconditionError(
        absl::StrCat("expired on ", FormatUtc(not_after())));
  }
  if (now < not_before()) {
    return absl::FailedPreconditionError(
        absl::StrCat("isn't valid before ", FormatUtc(not_before())));
  }
  return absl::OkStatus();
}

absl::Status Certificate::CheckHost(const std::string& host) const {
  const int matches = IsIpAddress(host)
                          ? X509_check_ip_asc(certificate_.get(), host.c_str(), 0)
                          : X509_check_host(certificate_.get(), host.data(), host.size(),
                                            X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, nullptr);
  if (matches == 1) return absl::OkStatus();
  std::vector<std::string> names = Names(GEN_DNS);
  for (std::string& address : Names(GEN_IPADD)) names.push_back(std::move(address));
  return absl::UnauthenticatedError(
      absl::StrCat("it is for ", names.empty() ? "no host" : absl::StrJoin(names, ", "),
                   ", not for ", host));
}

absl::Status Certificate::CheckRole(RoleSet needed) const {
  if (roles().Intersects(needed)) return absl::OkStatus();
  return absl::UnauthenticatedError(absl::StrCat("it has the role ", roles().ToString(),
                                                 " instead of ", needed.ToString()));
}

absl::Status Certificate::CheckKey(const std::string& pem) const {
  const Bio bio = Reader(pem);
  ERR_clear_error();
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(
      PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassphrase, nullptr), EVP_PKEY_free);
  if (key == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "holds no PEM private key without a passphrase: ", TakeOpenSslError()));
  }
  if (X509_check_private_key(certificate_.get(), key.get()) == 1) return absl::OkStatus();
  ERR_clear_error();
  return absl::InvalidArgumentError("isn't the key of the certificate");
}

std::string Certificate::Describe() const {
  const Bio bio = {BIO_new(BIO_s_mem()), BIO_free};
  X509_NAME_print_ex(bio.get(), X509_get_subject_name(certificate_.get()), 0,
                     XN_FLAG_ONELINE & ~ASN1_STRFLGS_ESC_MSB);
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &text);
  return absl::StrCat(absl::string_view(text, size), ", valid until ",
                      FormatUtc(not_after()), ", role ", roles().ToString());
}

}  // namespace moe
