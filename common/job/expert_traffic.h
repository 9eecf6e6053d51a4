// What the tokens of a job bring to the experts that one server has of a MoE layer.
#pragma once

#include <cstdint>

#include "proto/moe/v1/job.pb.h"

namespace moe {

// For each token, on average.
struct ExpertTraffic {
  // Rows that go to the server: at most one.
  double rows = 0;
  // (token, group): rows that come back.
  double group_rows = 0;
  // (token, expert).
  double pairs = 0;
};

// groups: of the layer's, those on the server. Every expert, or group, is chosen as often as
// any other and independently of the others, which the balancing losses aim at.
ExpertTraffic EvenTraffic(const v1::Moe& moe, int32_t groups);

}  // namespace moe
