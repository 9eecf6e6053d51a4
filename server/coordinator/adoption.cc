#include "server/coordinator/adoption.h"

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/job/model_plan.h"
#include "common/job/placement.h"
#include "server/coordinator/restore.h"

namespace moe {
namespace {

constexpr char kRunning[] = "job/running";
constexpr char kEvaluations[] = "job/evaluations";

absl::Status Save(Store& store, const std::string& key,
                  const google::protobuf::Message& message) {
  std::string json;
  const auto written = google::protobuf::util::MessageToJsonString(message, &json);
  if (!written.ok()) {
    return absl::InternalError(
        absl::StrCat("state key ", key, ": ", std::string(written.message())));
  }
  return store.Put(key, json);
}

// Whether it is there.
absl::StatusOr<bool> Load(Store& store, const std::string& key,
                          google::protobuf::Message* message) {
  ASSIGN_OR_RETURN(const std::optional<Store::Entry> entry, store.Get(key));
  if (!entry.has_value()) return false;
  const auto read = google::protobuf::util::JsonStringToMessage(entry->value, message);
  if (!read.ok()) {
    return absl::DataLossError(
        absl::StrCat("state key ", key, ": ", std::string(read.message())));
  }
  return true;
}

absl::StatusOr<std::string> Text(Store& store, const std::string& key) {
  ASSIGN_OR_RETURN(const std::optional<Store::Entry> entry, store.Get(key));
  return entry.has_value() ? entry->value : std::string();
}

// Whether the placement is of the shards that the job has, on servers of the generation.
bool IsPlacementOf(const v1::RunningGeneration& running) {
  const ModelPlan plan = MakeModelPlan(running.job());
  const auto& placed = running.placement().shards();
  return std::equal(
      plan.shards.begin(), plan.shards.end(), placed.begin(), placed.end(),
      [&](const ShardSpec& spec, const v1::ShardPlacement& shard) {
        const std::vector<std::string> hosts = HostsOf(shard);
        return spec.id == shard.shard() &&
               std::all_of(hosts.begin(), hosts.end(), [&](const std::string& host) {
                 return std::any_of(
                     running.members().begin(), running.members().end(),
                     [&](const auto& member) { return member.member() == host; });
               });
      });
}

bool SameReplicas(const Layout& layout, const v1::RunningGeneration& running) {
  return std::equal(layout.replicas.begin(), layout.replicas.end(),
                    running.replicas().begin(), running.replicas().end(),
                    [](const auto& a, const auto& b) {
                      return google::protobuf::util::MessageDifferencer::Equals(a, b);
                    });
}

}  // namespace

absl::Status SaveRunning(Store& store, const v1::RunningGeneration& running) {
  return Save(store, kRunning, running);
}

absl::Status SaveEvaluations(Store& store, const v1::StoredEvaluations& evaluations) {
  return Save(store, kEvaluations, evaluations);
}

void DescribeLayout(const Layout& layout, const MemberTable& members,
                    v1::RunningGeneration& running) {
  *running.mutable_job() = layout.job;
  *running.mutable_placement() = layout.placement;
  running.mutable_replicas()->Assign(layout.replicas.begin(), layout.replicas.end());
  for (const auto& [id, member] : members.members()) {
    if (!layout.memory.contains(id)) continue;
    v1::StoredMember* const stored = running.add_members();
    stored->set_member(id);
    stored->set_incarnation(member.incarnation);
    *stored->mutable_registration() = member.registration;
  }
}

absl::StatusOr<MemberTable> RestoreMembers(const v1::RunningGeneration& running,
                                           MemberTable::Rules rules, absl::Time now) {
  rules.servers = rules.workers = 0;
  for (const v1::StoredMember& member : running.members()) {
    ++(member.registration().kind() == v1::MEMBER_KIND_SERVER ? rules.servers
                                                              : rules.workers);
  }
  if (rules.servers == 0 || rules.workers == 0) {
    return absl::DataLossError(
        absl::StrCat("state key ", kRunning, " has no server or no worker"));
  }
  MemberTable members(std::move(rules));
  members.BeginGeneration(running.generation());
  for (const v1::StoredMember& member : running.members()) {
    members.Restore(member.registration(), member.incarnation(), now);
  }
  return members;
}

std::string AskedSize(int servers, int workers, int copies) {
  return absl::StrCat(servers, " ", workers,
                      copies == 1 ? "" : absl::StrCat(", ", copies, " copies"));
}

absl::StatusOr<std::optional<Adoption>> FindAdoption(Store& store, const AskedRun& asked,
                                                     std::string* why_not) {
  Adoption adoption;
  v1::RunningGeneration& running = adoption.running;
  ASSIGN_OR_RETURN(const bool found, Load(store, kRunning, &running));
  ASSIGN_OR_RETURN(const std::string generation, Text(store, "job/generation"));
  ASSIGN_OR_RETURN(const std::string phase, Text(store, "job/phase"));
  const auto differs = [&](const std::string& what) {
    *why_not = what;
    return std::optional<Adoption>();
  };
  if (phase != v1::Phase_Name(v1::PHASE_RUNNING)) {
    return differs(absl::StrCat("generation ", generation, " was ",
                                phase.substr(phase.find('_') + 1)));
  }
  if (!found || generation != absl::StrCat(running.generation())) {
    return differs(absl::StrCat("generation ", generation, " had just been opened"));
  }
  ASSIGN_OR_RETURN(const std::string size, Text(store, "job/asked_size"));
  const std::string asked_size = AskedSize(asked.servers, asked.workers, asked.copies);
  if (size != asked_size) {
    return differs(absl::StrCat("other --servers, --workers or --copies are asked for: ",
                                asked_size, " instead of ", size));
  }
  if (running.checkpoint_dir() != asked.checkpoint_dir) {
    return differs(
        absl::StrCat("--checkpoint_dir was ", running.checkpoint_dir(), " before"));
  }
  if (const std::string difference = FirstDifference(running.job(), asked.job);
      !difference.empty()) {
    return differs(absl::StrCat("the job has changed: ", difference));
  }
  ASSIGN_OR_RETURN(const MemberTable members, RestoreMembers(running, {}, absl::Now()));
  if (!IsPlacementOf(running)) return differs("this release has other shards");
  const absl::StatusOr<Layout> layout =
      MakeLayout(asked.job, true, members, asked.copies, &running.placement());
  if (!layout.ok()) return differs(std::string(layout.status().message()));
  if (!SameReplicas(*layout, running)) {
    return differs("this release would share out the replicas otherwise");
  }
  ASSIGN_OR_RETURN(const bool evaluated,
                   Load(store, kEvaluations, &adoption.evaluations));
  if (!evaluated || adoption.evaluations.generation() != running.generation()) {
    adoption.evaluations = v1::StoredEvaluations();
  }
  return std::optional<Adoption>(std::move(adoption));
}

}  // namespace moe
