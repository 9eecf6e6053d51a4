// What `moectl plan` prints.
#pragma once

#include <string>
#include <vector>

#include "client/moectl/json.h"
#include "common/job/cost_model.h"
#include "common/job/step_memory.h"

namespace moe {

struct Plan {
  std::string job;
  // Member ids, in the order of `cost`.
  std::vector<std::string> servers;
  std::vector<std::string> workers;
  ClusterSpeed speed;
  StepCost cost;
  MemoryNeeds memory;
};

std::string PlanView(const Plan& plan);
Json PlanToJson(const Plan& plan);

}  // namespace moe
