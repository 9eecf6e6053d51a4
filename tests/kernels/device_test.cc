#include "common/kernels/device.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

std::string ErrorOf(const DeviceOptions& options) {
  std::string error;
  return MakeBackend(options, 1, &error) == nullptr ? error : "none";
}

TEST(Device, TheCpuNeedsNothing) {
  EXPECT_EQ(ErrorOf({}), "none");
  EXPECT_EQ(ErrorOf({.device = "cpu"}), "none");
}

TEST(Device, WhatIsNoDeviceIsRefused) {
  for (const char* device : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda1",
                             "cuda:99999999999", "CUDA"}) {
    const std::string error = ErrorOf({.device = device});
    EXPECT_EQ(error, std::string("--device is \"") + device +
                         "\"; it must be cpu, cuda or cuda:N");
  }
}

TEST(Device, OptionsOfAGpuAreRefusedForTheCpu) {
  for (const DeviceOptions& options :
       {DeviceOptions{.tf32 = true}, DeviceOptions{.expert_cache_bytes = 1}}) {
    EXPECT_EQ(ErrorOf(options),
              "--tf32 and --expert_cache_gib are for a GPU, but --device is cpu");
  }
}

// With CUDA and without, on machines with a GPU and without: no machine has that one.
TEST(Device, AGpuThatIsNotThere) {
  const std::string error = ErrorOf({.device = "cuda:12345"});
  EXPECT_TRUE(error.find("--config=cuda") != std::string::npos ||
              error.find("GPU") != std::string::npos)
      << error;
}

}  // namespace
}  // namespace moe
