#include "common/base/available_memory.h"

#include <fstream>

namespace moe {

AvailableMemory ReadAvailableMemory(const std::string& proc) {
  AvailableMemory memory;
  // "MemAvailable:   12345 kB"
  std::ifstream lines(proc + "/meminfo");
  std::string name;
  int64_t kib = 0;
  std::string unit;
  while (lines >> name >> kib) {
    if (name == "MemAvailable:") memory.bytes = kib * 1024;
    std::getline(lines, unit);
  }
  std::ifstream(proc + "/sys/kernel/random/boot_id") >> memory.machine;
  return memory;
}

}  // namespace moe
