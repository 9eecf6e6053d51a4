// In place of the backend in programs that are built without CUDA.
#include "common/kernels/cuda/cuda_backend.h"

namespace moe {

std::unique_ptr<Backend> MakeCudaBackend(const CudaOptions&, std::string* error) {
  *error =
      "this program was built without CUDA: build it with `bazel build --config=cuda`, "
      "which needs NVIDIA's toolkit, or use --device=cpu";
  return nullptr;
}

}  // namespace moe
