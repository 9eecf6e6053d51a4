#pragma once

#include "common/kernels/backend.h"
#include "common/kernels/cpu/memory.h"

namespace moe::cpu {

// What every operation may use.
struct Context {
  Parallel& parallel;
  ScratchPool& scratch;
};

}  // namespace moe::cpu
