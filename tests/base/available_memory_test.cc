#include "common/base/available_memory.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace moe {
namespace {

TEST(AvailableMemoryTest, ReadsWhatTheKernelSays) {
  const std::string proc = testing::TempDir() + "/proc";
  std::filesystem::create_directories(proc + "/sys/kernel/random");
  std::ofstream(proc + "/meminfo") << "MemTotal:       24689316 kB\n"
                                      "MemFree:         1048576 kB\n"
                                      "MemAvailable:   20971520 kB\n"
                                      "HugePages_Total:       0\n"
                                      "Hugepagesize:       2048 kB\n";
  std::ofstream(proc + "/sys/kernel/random/boot_id") << "5d3c-01\n";
  const AvailableMemory memory = ReadAvailableMemory(proc);
  EXPECT_EQ(memory.bytes, int64_t{20} << 30);
  EXPECT_EQ(memory.machine, "5d3c-01");
}

TEST(AvailableMemoryTest, OfThisMachine) {
  const AvailableMemory memory = ReadAvailableMemory();
  EXPECT_GT(memory.bytes, int64_t{1} << 20);
  EXPECT_EQ(memory.machine, ReadAvailableMemory().machine);
  EXPECT_FALSE(memory.machine.empty());
}

TEST(AvailableMemoryTest, UnknownWithoutTheKernelsFiles) {
  const AvailableMemory memory = ReadAvailableMemory(testing::TempDir() + "/nowhere");
  EXPECT_EQ(memory.bytes, 0);
  EXPECT_TRUE(memory.machine.empty());
}

}  // namespace
}  // namespace moe
