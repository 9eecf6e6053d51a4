#include "server/coordinator/scaling.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace moe {

absl::StatusOr<MemberTable> PlanScaling(const MemberTable& members,
                                        const v1::ScaleRequest& request,
                                        const v1::Job& job, int copies,
                                        const Layout& present) {
  const int replicas = job.training().replicas();
  MemberTable scaled = members;
  for (const auto& [id, member] : members.members()) {
    // An earlier wish of the kind is void.
    const v1::MemberKind kind = member.registration.kind();
    if ((kind == v1::MEMBER_KIND_SERVER ? request.servers() : request.workers()) > 0) {
      scaled.Find(id)->leaving = false;
    }
  }
  for (const std::string& id : request.drain()) {
    MemberRecord* const member = scaled.Find(id);
    if (member == nullptr) {
      return absl::NotFoundError(
          absl::StrCat("there is no member ", id, "; there are ",
                       absl::StrJoin(scaled.Ids(v1::MEMBER_KIND_SERVER), ", "), ", ",
                       absl::StrJoin(scaled.Ids(v1::MEMBER_KIND_WORKER), ", ")));
    }
    member->leaving = true;
  }
  const auto number = [&](v1::MemberKind kind, uint32_t wanted) {
    if (wanted > 0) return static_cast<int>(wanted);
    // Those that drain aren't replaced.
    return scaled.wanted(kind) - (members.count(kind) - scaled.count(kind));
  };
  const int servers = number(v1::MEMBER_KIND_SERVER, request.servers());
  const int workers = number(v1::MEMBER_KIND_WORKER, request.workers());
  if (servers < 1 || workers < 1) {
    return absl::InvalidArgumentError("a job needs at least one server and one worker");
  }
  if (servers < copies) {
    return absl::InvalidArgumentError(
        "the coordinator was started with --copies=2, and the second copies of shards "
        "need another server than the first: at least 2 servers, not 1");
  }
  if (workers > replicas) {
    return absl::InvalidArgumentError(
        absl::StrCat("the job has ", replicas,
                     " replicas, so it takes at most as many workers, not ", workers));
  }
  scaled.Want(servers, workers);
  for (const v1::MemberKind kind : {v1::MEMBER_KIND_SERVER, v1::MEMBER_KIND_WORKER}) {
    std::vector<std::string> ids = scaled.Ids(kind);
    while (static_cast<int>(ids.size()) > scaled.wanted(kind)) {
      scaled.Find(ids.back())->leaving = true;
      ids.pop_back();
    }
  }
  if (scaled.count(v1::MEMBER_KIND_SERVER) > 0 &&
      scaled.count(v1::MEMBER_KIND_WORKER) > 0) {
    const absl::Status fits = MakeNextLayout(job, scaled, copies, present).status();
    if (!fits.ok()) return absl::FailedPreconditionError(fits.message());
  }
  return scaled;
}

}  // namespace moe
