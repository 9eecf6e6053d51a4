// The members of the cluster, and who may become one.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/status.pb.h"

namespace moe {

struct MemberRecord {
  std::string id;
  v1::RegisterRequest registration;
  uint64_t incarnation = 0;
  absl::Time last_heartbeat;
  // The last generation in which it is known to have lived.
  uint64_t heard_generation = 0;
  uint64_t ready_generation = 0;
  // Servers: version of the placement whose shards it has fetched in advance.
  uint64_t arrived = 0;
  // As of the last heartbeat.
  std::string waiting_for;
  v1::MemberTimes times;
  // Workers: FinishWork has come.
  bool finished = false;
  // It leaves with this generation.
  bool leaving = false;
  // Was told that the job is over.
  bool saw_end = false;
  // The coordinator knows of it from the one before, and hasn't heard it yet.
  bool awaited = false;
};

// "server/<name>" or "worker/<name>"
std::string MemberId(v1::MemberKind kind, const std::string& name);
// "worker/w1 (host7 pid 123)"
std::string Describe(const MemberRecord& member);
// Takes what a heartbeat says. Returns whether the member has worked since the one before.
bool TakeHeartbeat(const v1::HeartbeatRequest& request, absl::Time now,
                   MemberRecord& member);
v1::MemberStatus StatusOf(const MemberRecord& member, absl::Time now);

// Not thread-safe.
class MemberTable {
 public:
  struct Rules {
    int servers = 0;
    int workers = 0;
    bool allow_mixed_numerics = false;
    // Size of the job's vocabulary; 0: the data decides.
    int64_t vocabulary = 0;
    // Of the data that a restored checkpoint was trained on; empty: any, but all workers
    // the same.
    std::string data_sha256;
  };

  explicit MemberTable(Rules rules) : rules_(std::move(rules)) {}

  // Nobody has been heard in it; nobody is ready, nobody has finished.
  void BeginGeneration(uint64_t generation);
  // Those that leave are no members any more, and will be told that they may go.
  void ReleaseLeaving();
  // Nobody leaves.
  void CancelLeaving();
  // It is no member any more, and will be told that it may go.
  void Release(const std::string& id);
  // OK, or why this process can't become a member. `repeated` is set if it is one
  // already: the request is the one that made it so. UNAVAILABLE while those that have its place may
  // be dead, having said nothing since it came: it should ask again.
  absl::Status Check(const v1::RegisterRequest& request, absl::Time now, bool* repeated);
  // Takes the place of a member of that name.
  MemberRecord& Add(const v1::RegisterRequest& request, uint64_t incarnation,
                    absl::Time now);
  // One that the coordinator before knew: it is awaited from now on.
  void Restore(const v1::RegisterRequest& request, uint64_t incarnation, absl::Time now);
  void Remove(const std::string& id) { members_.erase(id); }

  // Null if there is none.
  MemberRecord* Find(const std::string& id);
  const MemberRecord* Find(const std::string& id) const;
  // The one that sent the request, a call of coordinator.proto; null if that is a stranger.
  template <typename Request>
  MemberRecord* SenderOf(const Request& request) {
    MemberRecord* const member = Find(request.member());
    const bool is_it =
        member != nullptr && member->registration.nonce() == request.nonce();
    return is_it ? member : nullptr;
  }
  // Without those that leave.
  std::vector<std::string> Ids(v1::MemberKind kind) const;  // ascending
  int count(v1::MemberKind kind) const;
  // How many the job takes.
  int wanted(v1::MemberKind kind) const {
    return kind == v1::MEMBER_KIND_SERVER ? rules_.servers : rules_.workers;
  }
  void Want(int servers, int workers) {
    rules_.servers = servers;
    rules_.workers = workers;
  }
  // The job takes those of them that are keys of this map, and none leaves; the others are forgotten.
  template <typename Map>
  void Restrict(const Map& ids) {
    std::erase_if(members_,
                  [&](const auto& entry) { return !ids.contains(entry.first); });
    CancelLeaving();
    Want(count(v1::MEMBER_KIND_SERVER), count(v1::MEMBER_KIND_WORKER));
  }
  // Whether it left with a generation that is over.
  bool Released(const std::string& id, uint64_t incarnation) const {
    return released_.contains({id, incarnation});
  }
  // As many as the job takes, or more, are there.
  bool enough() const;
  // And all have been heard in this generation.
  bool complete() const;
  // "1 of 2 servers and 2 of 2 workers": how many are missing, of those kinds that aren't
  // complete; if all are there: "server/s1 to be heard".
  std::string Missing() const;
  // Whether those that are there could do the job, were it content with them: at least one of each
  // kind, all of which have been heard.
  bool viable() const;
  // The job takes as many as are there; workers must read this data from here on.
  void Fix(const std::string& data_sha256);

  // Of the members that have been silent for a lease, or were awaited for so long: by id, how they were
  // lost.
  std::map<std::string, std::string> Silent(absl::Time now, absl::Duration lease,
                                            absl::Duration rejoin) const;
  std::vector<std::string> Awaited() const;  // ascending
  // Time in which nobody could be heard.
  void Excuse(absl::Duration pause);
  // "worker/w0 is computing, worker/w1 is waiting for ..."
  std::string WhatWorkersDo() const;

  const std::map<std::string, MemberRecord>& members() const { return members_; }

 private:
  // That the request may have a place of its kind.
  absl::Status CheckPlace(const std::string& id, const v1::RegisterRequest& request,
                          absl::Time now);
  absl::Status CheckNumerics(const v1::RegisterRequest& request) const;
  absl::Status CheckData(const v1::RegisterRequest& request) const;
  std::vector<std::string> Unheard() const;

  Rules rules_;
  uint64_t generation_ = 0;
  std::map<std::string, MemberRecord> members_;  // by id
  // By id and incarnation.
  std::set<std::pair<std::string, uint64_t>> released_;
  // Who asks for the place of another: since when, by nonce.
  std::map<uint64_t, absl::Time> claims_;
};

}  // namespace moe
