#include "server/coordinator/layout.h"

#include "absl/status/status.h"
#include "common/base/status_macros.h"
#include "common/job/job_file.h"
#include "common/job/model_plan.h"
#include "common/net/channel.h"
#include "server/coordinator/placement.h"

namespace moe {

absl::StatusOr<Layout> MakeLayout(const v1::Job& job, const MemberTable& members) {
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
  for (const std::string& server : servers) {
    layout.addresses[server] = members.Find(server)->registration.address();
  }
  return layout;
}

}  // namespace moe
