// Who may call what: the roles that certificates give, and the methods of each.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace moe {

enum class Role : uint8_t { kCoordinator, kServer, kWorker, kOperator, kObserver };

class RoleSet {
 public:
  constexpr RoleSet() = default;
  constexpr RoleSet(std::initializer_list<Role> roles) {
    for (const Role role : roles) Add(role);
  }
  constexpr void Add(Role role) { bits_ |= 1u << static_cast<unsigned>(role); }
  constexpr bool Has(Role role) const {
    return (bits_ >> static_cast<unsigned>(role) & 1) != 0;
  }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr bool Intersects(RoleSet other) const { return (bits_ & other.bits_) != 0; }
  // "worker", "operator or observer", "none"
  std::string ToString() const;

 private:
  unsigned bits_ = 0;
};

std::string_view RoleName(Role role);

// Of a certificate with these URIs among its subject alternative names: `switchyard:role=worker`
// gives the role worker. Other URIs, and names of roles that don't exist, give none.
RoleSet RolesOfUris(std::span<const std::string> uris);

// Who may call a method, "/moe.v1.OperatorService/Scale"; nullopt: the table doesn't have it.
std::optional<RoleSet> RolesAllowed(std::string_view method);

// PERMISSION_DENIED unless one of the roles may call the method; names both, and `peer`, who
// has them.
absl::Status CheckMethod(std::string_view method, RoleSet roles, std::string_view peer);

}  // namespace moe
