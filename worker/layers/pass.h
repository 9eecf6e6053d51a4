// What every layer must know of the pass that it takes part in.
#pragma once

#include <cstdint>

#include "common/random/random.h"

namespace moe {

enum class PassMode { kTrain, kEvaluate };

struct Pass {
  PassMode mode = PassMode::kTrain;
  uint64_t seed = 0;
  uint64_t step = 0;
  uint32_t replica = 0;
  // Of the whole step, all replicas and waves; training only.
  int64_t tokens = 0;

  bool training() const { return mode == PassMode::kTrain; }
  // layer_id: LayerId or kEmbeddingId.
  RandomKey Key(Purpose purpose, uint32_t layer_id, int32_t wave) const {
    return MakeKey(seed, purpose,
                   {.layer = layer_id,
                    .step = step,
                    .wave = static_cast<uint32_t>(wave),
                    .replica = replica});
  }
};

}  // namespace moe
