#include "server/coordinator/capacity.h"

#include <algorithm>
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/human.h"

namespace moe {
namespace {

// Members that share memory.
struct Pool {
  std::vector<const MemberRecord*> members;
  int64_t need = 0;
  // 0: unknown.
  int64_t has = 0;
};

// By pool, or by member where one shares with nobody.
std::map<std::string, Pool> PoolsOf(const MemoryNeeds& needs,
                                    const MemberTable& members) {
  std::map<std::string, Pool> pools;
  for (const auto& [id, need] : needs) {
    const MemberRecord& member = *members.Find(id);
    const std::string& shared = member.registration.memory_pool();
    const int64_t has = static_cast<int64_t>(member.registration.memory_bytes());
    Pool& pool = pools[shared.empty() ? id : absl::StrCat("pool ", shared)];
    pool.members.push_back(&member);
    pool.need += need.total();
    // Each looked when it started, before it used any.
    if (has > 0) pool.has = pool.has == 0 ? has : std::min(pool.has, has);
  }
  return pools;
}

// What would lower the need, by what is most of it.
std::string Advice(const MemberRecord& member, const MemoryNeed& need) {
  const int64_t work = need.activations + need.messages;
  const int64_t state = need.parameters + need.optimizer + need.gradients;
  if (need.copies > std::max(work, state)) {
    return "start servers with a smaller --copy_gib (steps may wait for their disks "
           "then, "
           "while a checkpoint is being written)";
  }
  const bool step = work > state;
  if (member.registration.kind() == v1::MEMBER_KIND_SERVER) {
    return step ? "start more servers on other hosts, start servers with "
                  "--activation_gib, "
                  "or lower training.lanes or training.unroll"
                : "start more servers on other hosts (each takes whole groups of experts "
                  "and whole dense shards: raise groups or training.dense_shards where "
                  "there are fewer than servers), start them with --disk_dir and "
                  "--disk_gib to "
                  "keep experts on disk, or make the model smaller";
  }
  return step ? "start more workers on other hosts, raise training.waves, or lower "
                "training.lanes or training.unroll"
              : "start more workers on other hosts, each with fewer replicas, lower "
                "training.replicas, or make the model smaller";
}

}  // namespace

absl::Status CheckMemory(const std::string& job, const MemoryNeeds& needs,
                         const MemberTable& members) {
  for (const auto& [name, pool] : PoolsOf(needs, members)) {
    if (pool.has == 0 || pool.need <= pool.has) continue;
    const MemberRecord& largest =
        **std::max_element(pool.members.begin(), pool.members.end(),
                           [&](const MemberRecord* a, const MemberRecord* b) {
                             return needs.at(a->id).total() < needs.at(b->id).total();
                           });
    const bool alone = pool.members.size() == 1;
    const std::string each =
        absl::StrJoin(pool.members, ", ", [&](std::string* out, const auto* member) {
          absl::StrAppend(out, member->id, " ", Describe(needs.at(member->id)));
        });
    return absl::FailedPreconditionError(absl::StrCat(
        "the job ", job, " needs ",
        alone ? absl::StrCat(Describe(needs.at(largest.id)), " of memory on ",
                             Describe(largest), ", which has ", FormatBytes(pool.has))
              : absl::StrCat(FormatBytes(pool.need), " of memory on ",
                             largest.registration.host(), ", which has ",
                             FormatBytes(pool.has), " for ", each),
        ": ", Advice(largest, needs.at(largest.id)),
        "; or give --memory_gib to a member that may use more"));
  }
  return absl::OkStatus();
}

}  // namespace moe
