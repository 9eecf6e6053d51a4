// Errors of CUDA and broken invariants of callers end the process.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

#include "common/kernels/cpu/check.h"

namespace moe::cuda {

using cpu::Check;

inline void CheckOk(cudaError_t error, const char* file = __builtin_FILE(),
                    int line = __builtin_LINE()) {
  if (error == cudaSuccess) [[likely]]
    return;
  std::fprintf(stderr, "%s:%d: CUDA: %s\n", file, line, cudaGetErrorString(error));
  std::abort();
}

inline void CheckOk(cublasStatus_t status, const char* file = __builtin_FILE(),
                    int line = __builtin_LINE()) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]]
    return;
  std::fprintf(stderr, "%s:%d: cuBLAS: %s\n", file, line, cublasGetStatusString(status));
  std::abort();
}

}  // namespace moe::cuda
