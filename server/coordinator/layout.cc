#include "server/coordinator/layout.h"

#include "absl/status/status.h"
#include "common/base/status_macros.h"
#include "common/job/job_file.h"
#include "common/job/model_plan.h"
#include "common/job/placement.h"
#include "common/net/channel.h"
#include "server/coordinator/capacity.h"
#include "server/coordinator/message_sizes.h"

namespace moe {

absl::StatusOr<Layout> MakeLayout(const v1::Job& job, bool training,
                                  const MemberTable& members) {
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
  layout.placement = MakePlacement(plan, servers);
  layout.replicas = AssignReplicas(job.training().replicas(), layout.workers);
  if (training) {
    RETURN_IF_ERROR(CheckStepMessages(layout.job, plan, layout.placement, layout.replicas,
                                      kMaxMessageBytes));
  }
  std::map<std::string, ServerLimits> limits;
  for (const std::string& server : servers) {
    const v1::RegisterRequest& registration = members.Find(server)->registration;
    layout.addresses[server] = registration.address();
    limits[server] = {
        .threads = static_cast<int>(registration.threads()),
        .tier = registration.disk_bytes() > 0,
        .activation_bytes = static_cast<int64_t>(registration.activation_bytes()),
        .copy_bytes = static_cast<int64_t>(registration.copy_bytes())};
  }
  std::map<std::string, int> threads;
  for (const std::string& worker : layout.workers) {
    threads[worker] = static_cast<int>(members.Find(worker)->registration.threads());
  }
  layout.memory = ComputeMemoryNeeds(layout.job, plan, layout.placement, layout.replicas,
                                     limits, threads, training);
  RETURN_IF_ERROR(CheckMemory(job.name(), layout.memory, members));
  return layout;
}

}  // namespace moe
