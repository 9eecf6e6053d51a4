// The backend for NVIDIA GPUs (docs/design/cuda.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/kernels/backend.h"

namespace moe {

struct CudaOptions {
  // Number of the GPU, from 0.
  int device = 0;
  // Products on the tensor cores, whose factors have 10 bits of significand instead of 23.
  bool tf32 = false;
  // What copies of experts that lie in the host's memory may take of the card's, in bytes. 0: half of
  // what is free.
  int64_t expert_cache_bytes = 0;
  // Of the host, for what callers do in parallel; at least 1.
  int threads = 1;
};

// Null, and *error set, where this program was built without CUDA, the machine has no such GPU or its
// driver is too old.
std::unique_ptr<Backend> MakeCudaBackend(const CudaOptions& options, std::string* error);

}  // namespace moe
