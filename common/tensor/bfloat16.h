// bf16: the upper half of a float, so its range with 8 bits of significand.
#pragma once

#include <bit>
#include <cstdint>

#include "common/tensor/matrix.h"

namespace moe {

struct Bfloat16 {
  uint16_t bits;
  friend bool operator==(const Bfloat16&, const Bfloat16&) = default;
};

using ConstBfloat16Matrix = BasicMatrix<const Bfloat16>;

inline float ToFloat(Bfloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

// The nearest; of two, the one whose last bit is 0. NaN stays NaN.
inline Bfloat16 ToBfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = x == x ? bits + 0x7FFF + (bits >> 16 & 1) : bits | 0x00400000;
  return {static_cast<uint16_t>(rounded >> 16)};
}

}  // namespace moe
