#include "tests/bench/lone_state.h"

#include <utility>

#include "common/job/model_plan.h"
#include "common/job/placement.h"

namespace moe {

v1::ClusterState LoneState(const v1::Job& job, const std::string& address) {
  v1::ClusterState state;
  state.set_phase(v1::PHASE_RUNNING);
  state.set_generation(1);
  *state.mutable_job() = job;
  state.set_mode(v1::RUN_MODE_TRAIN);
  *state.mutable_placement() = MakePlacement(MakeModelPlan(job), {kLoneServer});
  v1::ServerAddress* server = state.add_servers();
  server->set_server(kLoneServer);
  server->set_address(address);
  for (v1::ReplicaAssignment& replica :
       AssignReplicas(job.training().replicas(), {kLoneWorker})) {
    *state.add_replicas() = std::move(replica);
  }
  return state;
}

}  // namespace moe
