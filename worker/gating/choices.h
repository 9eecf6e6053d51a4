#pragma once

#include <cstdint>
#include <vector>

namespace moe {

// What a gate chose for one micro-batch of T tokens: p pairs of token and expert, by token,
// then by expert. Token t has the pairs [offset[t], offset[t + 1]), any number of them; a
// token without any has the output 0. Host memory.
struct Choices {
  std::vector<int32_t> offset;     // [T + 1]
  std::vector<int32_t> expert;     // [p] ascending within a token
  std::vector<float> gate;         // [p]
  std::vector<double> importance;  // [n]
  std::vector<double> load;        // [n]
};

}  // namespace moe
