#include "server/coordinator/member_table.h"

#include <glog/logging.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/protocol.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

// How long a process that asks again and again is remembered; longer than any lease.
constexpr absl::Duration kClaim = absl::Minutes(10);
// How many of them: there are never as many that mean it.
constexpr size_t kMostClaims = 1000;
constexpr size_t kLongestName = 100;

const char* KindName(v1::MemberKind kind) {
  return kind == v1::MEMBER_KIND_SERVER ? "server" : "worker";
}

bool IsMemberName(const std::string& name) {
  return !name.empty() && name.size() <= kLongestName &&
         std::all_of(name.begin(), name.end(), [](char c) {
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
  member.heard_generation = std::max(member.heard_generation, request.seen_generation());
  // A heartbeat may overtake an older one.
  member.ready_generation = std::max(member.ready_generation, request.ready_generation());
  member.arrived = std::max(member.arrived, request.arrived());
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

void MemberTable::BeginGeneration(uint64_t generation) {
  generation_ = generation;
  for (auto& [id, member] : members_) member.finished = false;
}

void MemberTable::ReleaseLeaving() {
  for (const auto& [id, member] : members_) {
    if (member.leaving) released_.emplace(id, member.incarnation);
  }
  std::erase_if(members_, [](const auto& entry) { return entry.second.leaving; });
}

void MemberTable::CancelLeaving() {
  for (auto& [id, member] : members_) member.leaving = false;
}

void MemberTable::Release(const std::string& id) {
  released_.emplace(id, members_.at(id).incarnation);
  members_.erase(id);
}

absl::Status MemberTable::Check(const v1::RegisterRequest& request, absl::Time now,
                                bool* repeated) {
  *repeated = false;
  if (request.kind() != v1::MEMBER_KIND_SERVER &&
      request.kind() != v1::MEMBER_KIND_WORKER) {
    return absl::InvalidArgumentError("a member is a server or a worker");
  }
  if (!IsMemberName(request.name())) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", absl::CHexEscape(request.name().substr(0, kLongestName)),
                     "\" is no name for a member: it takes letters, digits, '-', '_' and "
                     "'.', at most ",
                     kLongestName));
  }
  const std::string id = MemberId(request.kind(), request.name());
  if (request.protocol_version() != kProtocolVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        id, " speaks protocol ", request.protocol_version(), ", the coordinator ",
        kProtocolVersion, " (release ", kVersion, "); use the same release everywhere"));
  }
  if (const MemberRecord* present = Find(id);
      present != nullptr && request.nonce() != 0 &&
      request.nonce() == present->registration.nonce()) {
    *repeated = true;
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(CheckPlace(id, request, now));
  if (request.kind() == v1::MEMBER_KIND_SERVER) {
    if (request.address().empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(id, " gave no address at which workers reach it"));
    }
    for (const auto& [other_id, other] : members_) {
      if (other_id != id && other.registration.address() == request.address()) {
        return absl::AlreadyExistsError(absl::StrCat(
            id, " gave the address ", request.address(), ", which is that of ",
            Describe(other), "; give each server its own --advertise"));
      }
    }
  }
  RETURN_IF_ERROR(CheckNumerics(request));
  return request.kind() == v1::MEMBER_KIND_WORKER ? CheckData(request) : absl::OkStatus();
}

absl::Status MemberTable::CheckPlace(const std::string& id,
                                     const v1::RegisterRequest& request, absl::Time now) {
  std::vector<const MemberRecord*> holders;
  absl::Status refusal;
  if (const MemberRecord* present = Find(id); present != nullptr) {
    // One that hasn't been heard since a member was lost may be the lost one.
    if (present->heard_generation != generation_) return absl::OkStatus();
    holders.push_back(present);
    refusal = absl::AlreadyExistsError(
        absl::StrCat(Describe(*present), " lives; a second ", KindName(request.kind()),
                     " takes another --name"));
  } else if (count(request.kind()) >= wanted(request.kind())) {
    for (const std::string& other : Ids(request.kind())) holders.push_back(Find(other));
    refusal = absl::FailedPreconditionError(
        absl::StrCat(id, " comes too late: the job takes ", wanted(request.kind()), " ",
                     KindName(request.kind()), wanted(request.kind()) == 1 ? "" : "s",
                     ", and has ", absl::StrJoin(Ids(request.kind()), ", ")));
  } else {
    return absl::OkStatus();
  }
  std::erase_if(claims_, [&](const auto& claim) { return now - claim.second > kClaim; });
  if (claims_.size() >= kMostClaims && !claims_.contains(request.nonce())) {
    claims_.erase(std::min_element(
        claims_.begin(), claims_.end(),
        [](const auto& a, const auto& b) { return a.second < b.second; }));
  }
  const absl::Time since = claims_.try_emplace(request.nonce(), now).first->second;
  const bool all_live = std::all_of(
      holders.begin(), holders.end(),
      [&](const MemberRecord* holder) { return holder->last_heartbeat > since; });
  if (all_live || request.nonce() == 0) return refusal;
  return absl::UnavailableError(
      absl::StrCat(refusal.message(), ", or is dead: that is to be seen"));
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
        ") than the job was trained on (", rules_.data_sha256.substr(0, 12), ")"));
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
  claims_.erase(request.nonce());
  MemberRecord& member = members_[id];
  member = MemberRecord();
  member.id = id;
  member.registration = request;
  member.incarnation = incarnation;
  member.last_heartbeat = now;
  member.heard_generation = generation_;
  return member;
}

void MemberTable::Restore(const v1::RegisterRequest& request, uint64_t incarnation,
                          absl::Time now) {
  MemberRecord& member = Add(request, incarnation, now);
  member.heard_generation = 0;
  member.awaited = true;
}

std::vector<std::string> MemberTable::Awaited() const {
  std::vector<std::string> awaited;
  for (const auto& [id, member] : members_) {
    if (member.awaited) awaited.push_back(id);
  }
  return awaited;
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
    if (member.registration.kind() == kind && !member.leaving) ids.push_back(id);
  }
  return ids;
}

int MemberTable::count(v1::MemberKind kind) const {
  return static_cast<int>(Ids(kind).size());
}

bool MemberTable::enough() const {
  return count(v1::MEMBER_KIND_SERVER) >= rules_.servers &&
         count(v1::MEMBER_KIND_WORKER) >= rules_.workers;
}

bool MemberTable::complete() const { return enough() && Unheard().empty(); }

bool MemberTable::viable() const {
  return count(v1::MEMBER_KIND_SERVER) > 0 && count(v1::MEMBER_KIND_WORKER) > 0 &&
         Unheard().empty();
}

void MemberTable::Fix(const std::string& data_sha256) {
  rules_.servers = count(v1::MEMBER_KIND_SERVER);
  rules_.workers = count(v1::MEMBER_KIND_WORKER);
  rules_.data_sha256 = data_sha256;
}

std::vector<std::string> MemberTable::Unheard() const {
  std::vector<std::string> unheard;
  for (const auto& [id, member] : members_) {
    if (member.heard_generation != generation_) unheard.push_back(id);
  }
  return unheard;
}

std::string MemberTable::Missing() const {
  std::vector<std::string> missing;
  for (v1::MemberKind kind : {v1::MEMBER_KIND_SERVER, v1::MEMBER_KIND_WORKER}) {
    if (const int absent = wanted(kind) - count(kind); absent > 0) {
      missing.push_back(absl::StrCat(absent, " of ", wanted(kind), " ", KindName(kind),
                                     wanted(kind) == 1 ? "" : "s"));
    }
  }
  if (missing.empty()) {
    if (const std::vector<std::string> unheard = Unheard(); !unheard.empty()) {
      return absl::StrCat(absl::StrJoin(unheard, ", "), " to be heard");
    }
  }
  return absl::StrJoin(missing, " and ");
}

std::map<std::string, std::string> MemberTable::Silent(absl::Time now,
                                                       absl::Duration lease,
                                                       absl::Duration rejoin) const {
  std::map<std::string, std::string> silent;
  for (const auto& [id, member] : members_) {
    const absl::Duration silence = now - member.last_heartbeat;
    if (silence < (member.awaited ? std::max(lease, rejoin) : lease)) continue;
    if (member.awaited) {
      silent[id] = absl::StrFormat(
          "was lost: not heard for %.1f s since the coordinator was started again",
          absl::ToDoubleSeconds(silence));
      continue;
    }
    silent[id] = absl::StrFormat("was lost: no heartbeat for %.1f s; it was last %s",
                                 absl::ToDoubleSeconds(silence), Doing(member));
  }
  return silent;
}

void MemberTable::Excuse(absl::Duration pause) {
  for (auto& [nonce, since] : claims_) since += pause;
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
