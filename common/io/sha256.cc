#include "common/io/sha256.h"

#include <glog/logging.h>
#include <openssl/evp.h>

#include <vector>

#include "absl/strings/escaping.h"
#include "common/base/status_macros.h"
#include "common/io/input_file.h"

namespace moe {

struct Sha256::State {
  State() : context(EVP_MD_CTX_new()) { CHECK(context != nullptr); }
  ~State() { EVP_MD_CTX_free(context); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  EVP_MD_CTX* const context;
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  CHECK_EQ(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr), 1);
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::Update(const void* data, size_t size) {
  CHECK_EQ(EVP_DigestUpdate(state_->context, data, size), 1);
}

std::string Sha256::Hex() const {
  State copy;
  CHECK_EQ(EVP_MD_CTX_copy_ex(copy.context, state_->context), 1);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  CHECK_EQ(EVP_DigestFinal_ex(copy.context, digest, &size), 1);
  return absl::BytesToHexString({reinterpret_cast<const char*>(digest), size});
}

std::string Sha256Hex(std::string_view data) {
  Sha256 sha256;
  sha256.Update(data);
  return sha256.Hex();
}

absl::StatusOr<std::string> Sha256File(const std::string& path) {
  ASSIGN_OR_RETURN(const InputFile file, InputFile::Open(path));
  Sha256 sha256;
  std::vector<char> buffer(1 << 20);
  while (true) {
    ASSIGN_OR_RETURN(const size_t got, file.Read(buffer.data(), buffer.size()));
    if (got == 0) return sha256.Hex();
    sha256.Update(buffer.data(), got);
  }
}

}  // namespace moe
