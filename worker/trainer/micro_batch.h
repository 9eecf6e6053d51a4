#pragma once

#include <cstdint>
#include <vector>

namespace moe {

// Input and target words of one (replica, wave), time-major; target -1: not counted.
struct MicroBatch {
  std::vector<int32_t> input;
  std::vector<int32_t> target;
};

}  // namespace moe
