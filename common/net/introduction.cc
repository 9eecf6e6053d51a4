#include "common/net/introduction.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace moe {
namespace {

// "worker/w0 00000000075bcd15"
constexpr char kKey[] = "switchyard-caller";

}  // namespace

void Introduce(const Introduction& caller, grpc::ClientContext* context) {
  context->AddMetadata(
      kKey, absl::StrCat(caller.member, " ", absl::Hex(caller.nonce, absl::kZeroPad16)));
}

Introduction IntroductionOf(const grpc::ServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(kKey);
  if (found == metadata.end()) return {};
  const absl::string_view text(found->second.data(), found->second.size());
  const size_t space = text.rfind(' ');
  Introduction caller;
  if (space == text.npos || !absl::SimpleHexAtoi(text.substr(space + 1), &caller.nonce)) {
    return {};
  }
  caller.member = std::string(text.substr(0, space));
  return caller;
}

}  // namespace moe
