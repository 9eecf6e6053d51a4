#include "common/net/roles.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/base/string_view.h"

namespace moe {
namespace {

constexpr std::array kAllRoles = {Role::kCoordinator, Role::kServer, Role::kWorker,
                                  Role::kOperator, Role::kObserver};
constexpr char kUriPrefix[] = "switchyard:role=";

constexpr RoleSet kMembers = {Role::kServer, Role::kWorker};
constexpr RoleSet kReaders = {Role::kOperator, Role::kObserver};
constexpr RoleSet kAnyone = {Role::kCoordinator, Role::kServer, Role::kWorker,
                             Role::kOperator, Role::kObserver};

constexpr std::pair<std::string_view, RoleSet> kMethods[] = {
    {"/moe.v1.CoordinatorService/Register", kMembers},
    {"/moe.v1.CoordinatorService/Heartbeat", kMembers},
    {"/moe.v1.CoordinatorService/Leave", kMembers},
    {"/moe.v1.CoordinatorService/FailJob", kMembers},
    {"/moe.v1.CoordinatorService/ReportStep", {Role::kWorker}},
    {"/moe.v1.CoordinatorService/ReportEvaluation", {Role::kWorker}},
    {"/moe.v1.CoordinatorService/ReportShardFile", {Role::kServer}},
    {"/moe.v1.CoordinatorService/AwaitCheckpoint", {Role::kWorker}},
    {"/moe.v1.CoordinatorService/FinishWork", {Role::kWorker}},

    {"/moe.v1.ShardService/Exchange", {Role::kWorker}},

    {"/moe.v1.OperatorService/TakeCheckpoint", {Role::kOperator}},
    {"/moe.v1.OperatorService/Scale", {Role::kOperator}},

    {"/moe.v1.ClusterStatusService/GetClusterStatus", kReaders},
    {"/moe.v1.ServerStatusService/GetServerStatus", kReaders},
    {"/moe.v1.ServerStatusService/GetTensorDigests", kReaders},

    // gRPC's own.
    {"/grpc.health.v1.Health/Check", kAnyone},
    {"/grpc.health.v1.Health/Watch", kAnyone},
    {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", kReaders},
    {"/grpc.channelz.v1.Channelz/GetTopChannels", {Role::kOperator}},
    {"/grpc.channelz.v1.Channelz/GetServers", {Role::kOperator}},
    {"/grpc.channelz.v1.Channelz/GetServer", {Role::kOperator}},
    {"/grpc.channelz.v1.Channelz/GetServerSockets", {Role::kOperator}},
    {"/grpc.channelz.v1.Channelz/GetChannel", {Role::kOperator}},
    {"/grpc.channelz.v1.Channelz/GetSubchannel", {Role::kOperator}},
    {"/grpc.channelz.v1.Channelz/GetSocket", {Role::kOperator}},
};

}  // namespace

std::string_view RoleName(Role role) {
  switch (role) {
    case Role::kCoordinator:
      return "coordinator";
    case Role::kServer:
      return "server";
    case Role::kWorker:
      return "worker";
    case Role::kOperator:
      return "operator";
    case Role::kObserver:
      return "observer";
  }
  return "unknown";
}

std::string RoleSet::ToString() const {
  std::vector<absl::string_view> names;
  for (const Role role : kAllRoles) {
    if (Has(role)) names.push_back(ToAbsl(RoleName(role)));
  }
  return names.empty() ? "none" : absl::StrJoin(names, " or ");
}

RoleSet RolesOfUris(std::span<const std::string> uris) {
  RoleSet roles;
  for (const std::string& uri : uris) {
    absl::string_view name = uri;
    if (!absl::ConsumePrefix(&name, kUriPrefix)) continue;
    for (const Role role : kAllRoles) {
      if (name == ToAbsl(RoleName(role))) roles.Add(role);
    }
  }
  return roles;
}

std::optional<RoleSet> RolesAllowed(std::string_view method) {
  const auto* const found =
      std::find_if(std::begin(kMethods), std::end(kMethods),
                   [&](const auto& entry) { return entry.first == method; });
  if (found == std::end(kMethods)) return std::nullopt;
  return found->second;
}

absl::Status CheckMethod(std::string_view method, RoleSet roles, std::string_view peer) {
  const std::optional<RoleSet> allowed = RolesAllowed(method);
  if (allowed.has_value() && allowed->Intersects(roles)) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(
      ToAbsl(method), " is for the role ",
      allowed.has_value() ? allowed->ToString() : "of nobody: it is unknown",
      "; the certificate of ", ToAbsl(peer), " has the role ", roles.ToString()));
}

}  // namespace moe
