// Which kind of device a program computes on, as its flags say.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "common/kernels/backend.h"

namespace moe {

struct DeviceOptions {
  // "cpu", "cuda" or "cuda:N", the GPU's number, from 0.
  std::string device = "cpu";
  // Of a GPU: products by tensor cores, whose factors have 10 bits of significand.
  bool tf32 = false;
  // Of a GPU's memory, what experts may take that lie on the host (--disk_dir), in bytes; 0: half of what
  // is free.
  int64_t expert_cache_bytes = 0;
};

// The text of --device's help.
inline constexpr std::string_view kDeviceHelp =
    "What it computes on: cpu; or cuda, or cuda:N for the GPU number N, in programs that "
    "were built "
    "with --config=cuda.";

// Null, and *error set, where there is no such device or it can't be used.
std::unique_ptr<Backend> MakeBackend(const DeviceOptions& options, int threads,
                                     std::string* error);

// MakeBackend, or what tests have in its place.
using BackendMaker = std::function<decltype(MakeBackend)>;

}  // namespace moe
