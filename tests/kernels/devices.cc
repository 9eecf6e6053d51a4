// The kinds of devices that there are.
#include "common/kernels/cuda/cuda_backend.h"
#include "tests/kernels/kernel_test.h"

namespace moe {

std::vector<Device> Devices() {
  const auto cuda = [](int threads, std::string* error) {
    return MakeCudaBackend({.threads = threads}, error);
  };
  return {{"Cpu", MakeCpuBackend}, {"Cuda", cuda}};
}

}  // namespace moe
