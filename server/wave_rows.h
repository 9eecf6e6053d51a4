// What the groups of a MoE layer share of one wave.
#pragma once

#include <cstdint>
#include <vector>

#include "common/kernels/backend.h"

namespace moe {

// The rows of one wave at one mixture, in (replica, token) order.
struct WaveRows {
  Tensor x;                    // [rows, in]
  Tensor dy;                   // [rows, out]; from the backward pass on
  std::vector<int64_t> begin;  // [R + 1] first row of each replica
  std::vector<int32_t> token;  // [rows] within the replica's micro-batch
};

}  // namespace moe
