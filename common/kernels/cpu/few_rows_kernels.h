// The loops of few_rows.h, compiled once for AVX2 and once for AVX-512. Both give the same bits: an
// element of a product is one chain of fused multiply-adds, or sixteen that are added in one order.
#pragma once

#include <cstdint>

#include "common/tensor/bfloat16.h"

namespace moe::cpu {

// Pointers and sizes only: what this header defined would be compiled for either processor, and the
// linker might keep the wrong copy.
template <typename Weight>
struct FewRowsProductArguments {
  int64_t m, n, k;  // c is [m, n], and each element a sum of k > 0 terms
  const float* a;
  int64_t a_stride;
  const Weight* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  bool add;  // to what c is; not of outer products
};

// Memory that is needed next and comes into the caches meanwhile; null: none.
struct NeededNext {
  const void* at[3];
  int64_t bytes;  // of each
};

struct FewRowsKernels {
  // Up to so many rows products are faster than the BLAS's of the same processor.
  int64_t most_rows;
  // a [m, k] b [k, n]
  void (*product)(const FewRowsProductArguments<float>&);
  void (*product16)(const FewRowsProductArguments<Bfloat16>&);
  // a [m, k] b [n, k]^T
  void (*transposed)(const FewRowsProductArguments<float>&);
  void (*transposed16)(const FewRowsProductArguments<Bfloat16>&);
  // a [k, m]^T b [k, n]
  void (*outer)(const FewRowsProductArguments<float>&, const NeededNext&);
};

FewRowsKernels FewRowsAvx2();
// Only where HasAvx512.
FewRowsKernels FewRowsAvx512();

bool HasAvx512();
// The fastest that this processor runs.
const FewRowsKernels& BestFewRows();

}  // namespace moe::cpu
