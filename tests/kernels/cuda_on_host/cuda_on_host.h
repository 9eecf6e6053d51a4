// The backend for GPUs, compiled for the host and run by it.
#pragma once

#include <memory>
#include <string>

#include "common/kernels/backend.h"
#include "common/kernels/cuda/cuda_backend.h"

namespace moe {

// As MakeCudaBackend, which the sources have under this name here, so that a program may have both.
std::unique_ptr<Backend> MakeCudaOnHostBackend(const CudaOptions& options,
                                               std::string* error);

}  // namespace moe

namespace cuda_on_host {

// Whether a block's threads run from the last to the first, from now on: another order, the same results.
void SetReversed(bool reversed);

}  // namespace cuda_on_host
