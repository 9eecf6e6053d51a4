// Which rows add to which, in row order, so that sums need no atomic operations.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moe::cuda {

// For each index that occurs, ascending, the places where it does, ascending.
struct RowLists {
  // Places with a negative index are left out.
  explicit RowLists(std::span<const int32_t> index, int64_t rows);

  std::vector<int32_t> target;  // [m] the indices
  std::vector<int32_t> begin;   // [m + 1] of each list in `place`
  std::vector<int32_t> place;
};

}  // namespace moe::cuda
