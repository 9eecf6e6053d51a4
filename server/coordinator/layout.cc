#include "server/coordinator/layout.h"

#include <set>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/job/job_file.h"
#include "common/job/model_plan.h"
#include "common/job/placement.h"
#include "common/job/tensor_state.h"
#include "common/net/channel.h"
#include "server/coordinator/capacity.h"
#include "server/coordinator/message_sizes.h"

namespace moe {

namespace {

std::map<std::string, ServerLimits> LimitsOf(const MemberTable& members) {
  std::map<std::string, ServerLimits> limits;
  for (const std::string& server : members.Ids(v1::MEMBER_KIND_SERVER)) {
    const v1::RegisterRequest& registration = members.Find(server)->registration;
    limits[server] = {
        .threads = static_cast<int>(registration.threads()),
        .tier = registration.disk_bytes() > 0,
        .activation_bytes = static_cast<int64_t>(registration.activation_bytes()),
        .copy_bytes = static_cast<int64_t>(registration.copy_bytes())};
  }
  return limits;
}

// While shards move, each is on both of its servers.
absl::Status CheckMemoryOfMoves(const Layout& layout, const ModelPlan& plan,
                                const Layout& present, const MemberTable& members) {
  const std::map<std::string, ServerLimits> limits = LimitsOf(members);
  MemoryNeeds needs = present.memory;
  needs.insert(layout.memory.begin(), layout.memory.end());
  const std::map<std::string, std::vector<ShardSpec>> next =
      ShardsByServer(plan, layout.placement);
  for (const auto& [server, shards] : next) {
    // A newcomer's need has its shards.
    if (!present.memory.contains(server)) continue;
    const std::set<std::string> has = ShardsOf(present.placement, server);
    for (const ShardSpec& shard : shards) {
      if (has.contains(shard.id)) continue;
      for (const int64_t t : shard.tensors) {
        const TensorSpec& tensor = plan.tensors[t];
        if (tensor.of_expert && limits.at(server).tier) continue;
        const TensorState state = StateOf(layout.job.optimizer(), tensor);
        needs[server].parameters += state.parameter_bytes;
        needs[server].optimizer += state.optimizer_bytes();
      }
    }
  }
  // One that has gone needs nothing.
  std::erase_if(needs,
                [&](const auto& need) { return members.Find(need.first) == nullptr; });
  return Annotate(CheckMemory(layout.job.name(), needs, members), "while shards move");
}

}  // namespace

absl::StatusOr<Layout> MakeLayout(const v1::Job& job, bool training,
                                  const MemberTable& members, int copies,
                                  const v1::Placement* placement) {
  const auto with_copies = [copies](const absl::Status& status) {
    if (copies == 1) return status;
    return Annotate(status,
                    absl::StrCat("with ", copies, " copies of each shard (--copies)"));
  };
  Layout layout;
  layout.job = job;
  layout.workers = members.Ids(v1::MEMBER_KIND_WORKER);
  layout.data = members.Find(layout.workers.front())->registration.data();
  if (job.model().vocabulary() == 0) {
    layout.job.mutable_model()->set_vocabulary(
        static_cast<int32_t>(layout.data.vocabulary()));
  }
  const v1::Model& model = layout.job.model();
  if (model.has_tables()) {
    const absl::Status fit = CheckCandidates(model.tables(), model.vocabulary());
    if (!fit.ok()) return absl::FailedPreconditionError(fit.message());
  }
  const ModelPlan plan = MakeModelPlan(layout.job);
  RETURN_IF_ERROR(CheckShardSizes(plan, kMaxMessageBytes));
  const std::vector<std::string> servers = members.Ids(v1::MEMBER_KIND_SERVER);
  layout.placement =
      placement != nullptr ? *placement : MakePlacement(plan, servers, copies);
  layout.replicas = AssignReplicas(job.training().replicas(), layout.workers);
  for (v1::ReplicaAssignment& assignment : layout.replicas) {
    assignment.set_nonce(members.Find(assignment.worker())->registration.nonce());
  }
  if (training) {
    RETURN_IF_ERROR(with_copies(CheckStepMessages(layout.job, plan, layout.placement,
                                                  layout.replicas, kMaxMessageBytes)));
  }
  for (const std::string& server : servers) {
    layout.addresses[server] = members.Find(server)->registration.address();
  }
  std::map<std::string, int> threads;
  for (const std::string& worker : layout.workers) {
    threads[worker] = static_cast<int>(members.Find(worker)->registration.threads());
  }
  layout.memory = ComputeMemoryNeeds(layout.job, plan, layout.placement, layout.replicas,
                                     LimitsOf(members), threads, training);
  RETURN_IF_ERROR(with_copies(CheckMemory(job.name(), layout.memory, members)));
  return layout;
}

absl::StatusOr<Layout> MakeNextLayout(const v1::Job& job, const MemberTable& members,
                                      int copies, const Layout& present) {
  const ModelPlan plan = MakeModelPlan(present.job);
  const v1::Placement placement =
      MovePlacement(plan, present.placement, members.Ids(v1::MEMBER_KIND_SERVER), copies);
  ASSIGN_OR_RETURN(Layout layout, MakeLayout(job, true, members, copies, &placement));
  RETURN_IF_ERROR(CheckMemoryOfMoves(layout, plan, present, members));
  return layout;
}

}  // namespace moe
