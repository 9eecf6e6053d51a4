#include "server/coordinator/member_table.h"

#include <glog/logging.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/protocol.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

const char* KindName(v1::MemberKind kind) {
  return kind == v1::MEMBER_KIND_SERVER ? "server" : "worker";
}

bool IsMemberName(const std::string& name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.';
  });
}

std::string Numerics(const std::string& id, const v1::RegisterRequest& registration) {
  return absl::StrCat(id, " (", registration.numerics_description(), ", fingerprint ",
                      registration.numerics().substr(0, 12), ")");
}

double Work(const v1::MemberTimes& times) { return times.computing() + times.moving(); }

// "computing"
std::string Doing(const MemberRecord& member) {
  return member.waiting_for.empty() ? "computing"
                                    : absl::StrCat("waiting for ", member.waiting_for);
}

}  // namespace

std::string MemberId(v1::MemberKind kind, const std::string& name) {
  return absl::StrCat(KindName(kind), "/", name);
}

std::string Describe(const MemberRecord& member) {
  return absl::StrCat(member.id, " (", member.registration.host(), " pid ",
                      member.registration.pid(), ")");
}

bool TakeHeartbeat(const v1::HeartbeatRequest& request, absl::Time now,
                   MemberRecord& member) {
  const bool worked = Work(request.times()) > Work(member.times);
  member.last_heartbeat = now;
  // A heartbeat may overtake an older one.
  member.ready_generation = std::max(member.ready_generation, request.ready_generation());
  member.waiting_for = request.waiting_for();
  member.times = request.times();
  return worked;
}

v1::MemberStatus StatusOf(const MemberRecord& member, absl::Time now) {
  v1::MemberStatus status;
  status.set_member(member.id);
  status.set_kind(member.registration.kind());
  status.set_address(member.registration.address());
  status.set_host(member.registration.host());
  status.set_pid(member.registration.pid());
  status.set_numerics(member.registration.numerics());
  status.set_numerics_description(member.registration.numerics_description());
  status.set_seconds_since_heartbeat(absl::ToDoubleSeconds(now - member.last_heartbeat));
  status.set_waiting_for(member.waiting_for);
  *status.mutable_times() = member.times;
  status.set_memory_bytes(member.registration.memory_bytes());
  return status;
}

absl::Status MemberTable::Check(const v1::RegisterRequest& request,
                                bool* repeated) const {
  *repeated = false;
  if (request.kind() != v1::MEMBER_KIND_SERVER &&
      request.kind() != v1::MEMBER_KIND_WORKER) {
    return absl::InvalidArgumentError("a member is a server or a worker");
  }
  if (!IsMemberName(request.name())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", request.name(),
        "\" is no name for a member: it takes letters, digits, '-', '_' and '.'"));
  }
  const std::string id = MemberId(request.kind(), request.name());
  if (request.protocol_version() != kProtocolVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        id, " speaks protocol ", request.protocol_version(), ", the coordinator ",
        kProtocolVersion, " (release ", kVersion, "); use the same release everywhere"));
  }
  if (const auto found = members_.find(id); found != members_.end()) {
    const v1::RegisterRequest& present = found->second.registration;
    if (request.nonce() != 0 && request.nonce() == present.nonce()) {
      *repeated = true;
      return absl::OkStatus();
    }
    return absl::AlreadyExistsError(
        absl::StrCat(Describe(found->second), " lives; a second ",
                     KindName(request.kind()), " takes another --name"));
  }
  if (count(request.kind()) >= wanted(request.kind())) {
    return absl::FailedPreconditionError(
        absl::StrCat(id, " comes too late: the job takes ", wanted(request.kind()), " ",
                     KindName(request.kind()), wanted(request.kind()) == 1 ? "" : "s",
                     ", and has ", absl::StrJoin(Ids(request.kind()), ", ")));
  }
  if (request.kind() == v1::MEMBER_KIND_SERVER) {
    if (request.address().empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(id, " gave no address at which workers reach it"));
    }
    for (const auto& [other_id, other] : members_) {
      if (other.registration.address() == request.address()) {
        return absl::AlreadyExistsError(absl::StrCat(
            id, " gave the address ", request.address(), ", which is that of ",
            Describe(other), "; give each server its own --advertise"));
      }
    }
  }
  RETURN_IF_ERROR(CheckNumerics(request));
  return request.kind() == v1::MEMBER_KIND_WORKER ? CheckData(request) : absl::OkStatus();
}

absl::Status MemberTable::CheckNumerics(const v1::RegisterRequest& request) const {
  if (rules_.allow_mixed_numerics) return absl::OkStatus();
  for (const auto& [id, member] : members_) {
    if (member.registration.numerics() == request.numerics()) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(Numerics(MemberId(request.kind(), request.name()), request),
                     " computes other bits than ", Numerics(id, member.registration),
                     "; use hosts of one kind, or set allow_mixed_numerics in the job"));
  }
  return absl::OkStatus();
}

absl::Status MemberTable::CheckData(const v1::RegisterRequest& request) const {
  const std::string id = MemberId(request.kind(), request.name());
  const v1::DataDescription& data = request.data();
  for (const auto& [other_id, other] : members_) {
    if (other.registration.kind() != v1::MEMBER_KIND_WORKER) continue;
    if (other.registration.data().sha256() == data.sha256()) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        id, " reads other data (SHA-256 ", data.sha256().substr(0, 12), ") than ",
        other_id, " (", other.registration.data().sha256().substr(0, 12),
        "); give all workers the same --data"));
  }
  if (!rules_.data_sha256.empty() && rules_.data_sha256 != data.sha256()) {
    return absl::FailedPreconditionError(absl::StrCat(
        id, " reads other data (SHA-256 ", data.sha256().substr(0, 12),
        ") than the checkpoint was trained on (", rules_.data_sha256.substr(0, 12), ")"));
  }
  if (data.vocabulary() <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(id, " has data without a vocabulary"));
  }
  if (rules_.vocabulary != 0 && rules_.vocabulary < data.vocabulary()) {
    return absl::FailedPreconditionError(absl::StrCat(
        id, " has data of ", data.vocabulary(), " words, the job's model.vocabulary is ",
        rules_.vocabulary, "; make it at least that, or 0 to take the data's"));
  }
  return absl::OkStatus();
}

MemberRecord& MemberTable::Add(const v1::RegisterRequest& request, uint64_t incarnation,
                               absl::Time now) {
  const std::string id = MemberId(request.kind(), request.name());
  MemberRecord& member = members_[id];
  member = MemberRecord();
  member.id = id;
  member.registration = request;
  member.incarnation = incarnation;
  member.last_heartbeat = now;
  return member;
}

MemberRecord* MemberTable::Find(const std::string& id) {
  const auto found = members_.find(id);
  return found == members_.end() ? nullptr : &found->second;
}

const MemberRecord* MemberTable::Find(const std::string& id) const {
  const auto found = members_.find(id);
  return found == members_.end() ? nullptr : &found->second;
}

std::vector<std::string> MemberTable::Ids(v1::MemberKind kind) const {
  std::vector<std::string> ids;
  for (const auto& [id, member] : members_) {
    if (member.registration.kind() == kind) ids.push_back(id);
  }
  return ids;
}

int MemberTable::count(v1::MemberKind kind) const {
  return static_cast<int>(Ids(kind).size());
}

bool MemberTable::complete() const {
  return count(v1::MEMBER_KIND_SERVER) == rules_.servers &&
         count(v1::MEMBER_KIND_WORKER) == rules_.workers;
}

std::string MemberTable::Missing() const {
  std::vector<std::string> missing;
  for (v1::MemberKind kind : {v1::MEMBER_KIND_SERVER, v1::MEMBER_KIND_WORKER}) {
    if (const int absent = wanted(kind) - count(kind); absent > 0) {
      missing.push_back(absl::StrCat(absent, " of ", wanted(kind), " ", KindName(kind),
                                     wanted(kind) == 1 ? "" : "s"));
    }
  }
  return absl::StrJoin(missing, " and ");
}

std::map<std::string, std::string> MemberTable::Silent(absl::Time now,
                                                       absl::Duration lease) const {
  std::map<std::string, std::string> silent;
  for (const auto& [id, member] : members_) {
    const absl::Duration silence = now - member.last_heartbeat;
    if (silence < lease) continue;
    silent[id] = absl::StrFormat("was lost: no heartbeat for %.1f s; it was last %s",
                                 absl::ToDoubleSeconds(silence), Doing(member));
  }
  return silent;
}

void MemberTable::Excuse(absl::Duration pause) {
  for (auto& [id, member] : members_) member.last_heartbeat += pause;
}

std::string MemberTable::WhatWorkersDo() const {
  std::vector<std::string> doings;
  for (const auto& [id, member] : members_) {
    if (member.registration.kind() != v1::MEMBER_KIND_WORKER) continue;
    doings.push_back(absl::StrCat(id, " is ", Doing(member)));
  }
  return absl::StrJoin(doings, ", ");
}

}  // namespace moe
