#include "common/net/peer_roles.h"

#include <grpc/grpc_security_constants.h>

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/string_view.h"

namespace moe {
namespace {

std::vector<std::string> Properties(const grpc::AuthContext& context, const char* name) {
  std::vector<std::string> values;
  for (const grpc::string_ref& value : context.FindPropertyValues(name)) {
    values.emplace_back(value.data(), value.size());
  }
  return values;
}

}  // namespace

std::optional<RoleSet> PeerRoles(const grpc::AuthContext& context) {
  const std::vector<std::string> security =
      Properties(context, GRPC_TRANSPORT_SECURITY_TYPE_PROPERTY_NAME);
  if (security.empty() || security[0] != GRPC_TLS_TRANSPORT_SECURITY_TYPE) {
    return std::nullopt;
  }
  return RolesOfUris(Properties(context, GRPC_PEER_URI_PROPERTY_NAME));
}

std::string PeerName(const grpc::AuthContext& context) {
  const std::vector<std::string> subjects =
      Properties(context, GRPC_X509_SUBJECT_PROPERTY_NAME);
  return subjects.empty() ? "a peer without a subject" : subjects[0];
}

absl::Status CheckSpeaksFor(const grpc::ServerContext& context, std::string_view member) {
  const std::shared_ptr<const grpc::AuthContext> peer = context.auth_context();
  if (peer == nullptr) return absl::OkStatus();
  const std::optional<RoleSet> roles = PeerRoles(*peer);
  if (!roles.has_value()) return absl::OkStatus();
  for (const Role role : {Role::kServer, Role::kWorker}) {
    if (roles->Has(role) &&
        absl::StartsWith(ToAbsl(member), absl::StrCat(ToAbsl(RoleName(role)), "/"))) {
      return absl::OkStatus();
    }
  }
  return absl::PermissionDeniedError(
      absl::StrCat("the certificate of ", PeerName(*peer), " has the role ",
                   roles->ToString(), " and can't speak for \"", ToAbsl(member), "\""));
}

}  // namespace moe
