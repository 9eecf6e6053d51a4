// The kernels for GPUs, run by the host (docs/design/cuda.md). What depends on the order of a block's
// threads differs between the two; the second has to make room among its copies of experts, too.
#include "tests/kernels/cuda_on_host/cuda_on_host.h"
#include "tests/kernels/kernel_test.h"

namespace moe {

std::vector<Device> Devices() {
  const auto make = [](bool reversed, int64_t cache) {
    return [=](int threads, std::string* error) {
      cuda_on_host::SetReversed(reversed);
      return MakeCudaOnHostBackend({.expert_cache_bytes = cache, .threads = threads},
                                   error);
    };
  };
  return {{"CudaOnHost", make(false, 1 << 30)},
          {"CudaOnHostReversed", make(true, 32 << 10)}};
}

}  // namespace moe
