#include "common/kernels/device.h"

#include <charconv>

#include "common/kernels/cuda/cuda_backend.h"

namespace moe {

std::unique_ptr<Backend> MakeBackend(const DeviceOptions& options, int threads,
                                     std::string* error) {
  const std::string_view device = options.device;
  constexpr std::string_view kCuda = "cuda";
  const bool cuda = device.starts_with(kCuda);
  CudaOptions of_cuda{.tf32 = options.tf32,
                      .expert_cache_bytes = options.expert_cache_bytes,
                      .threads = threads};
  bool valid = device == "cpu" || device == kCuda;
  if (cuda && device.size() > kCuda.size() + 1 && device[kCuda.size()] == ':') {
    const char* const end = device.data() + device.size();
    const auto [last, code] =
        std::from_chars(device.data() + kCuda.size() + 1, end, of_cuda.device);
    valid = code == std::errc() && last == end && of_cuda.device >= 0;
  }
  if (!valid) {
    *error = "--device is \"" + options.device + "\"; it must be cpu, cuda or cuda:N";
    return nullptr;
  }
  if (cuda) return MakeCudaBackend(of_cuda, error);
  if (options.tf32 || options.expert_cache_bytes > 0) {
    *error = "--tf32 and --expert_cache_gib are for a GPU, but --device is cpu";
    return nullptr;
  }
  return MakeCpuBackend(threads, error);
}

}  // namespace moe
