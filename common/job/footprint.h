// Bytes as a process has them: in blocks of whole pages, or in malloc's heap.
#pragma once

#include <cstdint>

namespace moe {

struct Footprint {
  // Arrays of the CPU backend of 2 MiB and more (common/kernels/cpu/large_blocks.h).
  int64_t pages = 0;
  // Everything else.
  int64_t heap = 0;

  int64_t size() const { return pages + heap; }
  // Of what comes and goes within a step: it leaves holes in the heap. Measured.
  Footprint with_holes() const { return {pages, heap * 4 / 3}; }

  Footprint operator+(const Footprint& other) const {
    return {pages + other.pages, heap + other.heap};
  }
  Footprint& operator+=(const Footprint& other) { return *this = *this + other; }
  friend Footprint operator*(int64_t count, const Footprint& each) {
    return {count * each.pages, count * each.heap};
  }
};

// So many floats, rounded, in an array of the CPU backend; in host memory.
Footprint ArrayOf(double floats);
Footprint HostFloats(double floats);

}  // namespace moe
