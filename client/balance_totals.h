// Importance and load of a MoE layer, joined over its groups.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "client/routing_plan.h"
#include "common/base/moments.h"
#include "proto/moe/v1/expert.pb.h"

namespace moe {

// Over all replicas and the waves so far.
struct BalanceTotals {
  uint64_t tokens = 0;
  // Of all experts.
  BalanceMoments moments;
  // [n]; empty in a hierarchical MoE, whose servers keep them.
  std::vector<double> importance;
  std::vector<double> load;
};

// INTERNAL unless one group's totals are there and of the layout's sizes.
absl::Status CheckTotals(const ExpertLayout& layout, const v1::GroupOutput& group);
// Whether two replies say the same of a group's totals.
bool SameTotals(const v1::GroupOutput& a, const v1::GroupOutput& b);
// groups: every group of the layer, ascending.
BalanceTotals JoinTotals(const ExpertLayout& layout,
                         std::span<const v1::GroupOutput* const> groups);

}  // namespace moe
