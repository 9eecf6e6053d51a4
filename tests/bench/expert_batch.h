// Many experts with their rows, for benchmarks: so many that their weights don't stay in the caches, as
// in a model whose capacity matters.
#pragma once

#include <cstdint>
#include <vector>

#include "common/kernels/backend.h"
#include "common/tensor/bfloat16.h"

namespace moe {

// What is kept of a parameter: floats and both moments; floats and a factored second moment; the
// same with bf16.
enum Kept { kFull, kFactored, kBfloat16 };

OptimizerStep StepOf(int64_t kept, float rate);

// Experts of (d, h), each with the same number of rows.
struct ExpertBatch {
  ExpertBatch(Backend& backend, int64_t d, int64_t h, int64_t rows, int64_t kept);

  double flops() const { return 4.0 * total * d * h; }
  double parameters() const { return 2.0 * count * d * h; }
  double weight_bytes() const { return parameters() * (w.empty() ? 2 : 4); }

  int64_t d, h, count, total;
  Tensor x, dy, gate, y, dgate, dx;
  std::vector<Tensor> hidden, dhidden;
  std::vector<Tensor> weights, moments;
  std::vector<Array<Bfloat16>> halves;
  std::vector<float*> w, m, v;
  std::vector<Bfloat16*> w16;
  const std::vector<OptimizerStep> steps;
  std::vector<ExpertRows> experts;
  std::vector<ExpertUpdate> updates;
};

}  // namespace moe
