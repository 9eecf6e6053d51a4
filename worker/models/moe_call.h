// What the worker's gate of one mixture of experts asks of the experts.
#pragma once

#include <cstdint>
#include <span>

#include "common/job/mixtures.h"

namespace moe {

// A point between two segments of a model at which rows go to the experts and come back.
struct MoeExchange {
  int32_t mixture = 0;  // index into MixturesOf(job)
  MixtureId id;
  int32_t call = 0;  // of the mixture in a wave
};

// What the gate of a mixture chose in one call for its T tokens: p pairs of token and expert
// (worker/gating/gate.h); in a hierarchical MoE this is the primary gate, and its experts are the
// groups. Host memory, owned by the model.
struct MoeCall {
  std::span<const int32_t> offset;  // [T + 1] of each token's pairs
  std::span<const int32_t> expert;  // [p] ascending within a token
  std::span<const float> gate;      // [p]
  // Valid until the mixture's next call.
  std::span<const float> x;            // [T, in]
  std::span<const double> importance;  // [n]
  std::span<const double> load;        // [n]
};

}  // namespace moe
