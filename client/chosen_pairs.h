// What the secondary gates of a hierarchical MoE chose, as the servers report it.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "client/routing_plan.h"
#include "proto/moe/v1/expert.pb.h"

namespace moe {

// Pairs of token and expert of one micro-batch, by group, then token, then expert.
struct ChosenPairs {
  std::vector<int32_t> token;
  std::vector<int32_t> expert;  // of the layer
  std::vector<float> gate;      // the product of both gates; empty in training
};

// Adds one group's. INTERNAL unless they are layout.k pairs for each of the group's rows, in
// order, with gates in an evaluation.
absl::Status AppendChosen(const ExpertLayout& layout, const RoutingPlan::Group& group,
                          v1::Mode mode, const v1::GroupRouting& chosen,
                          ChosenPairs* pairs);

}  // namespace moe
