#pragma once

#include <cstdint>
#include <span>

#include "common/kernels/backend.h"
#include "worker/layers/dropout.h"
#include "worker/layers/parameter.h"
#include "worker/layers/pass.h"

namespace moe {

// y_t = dropout(table[input_t]). Keeps nothing from forward to backward.
class Embedding {
 public:
  // table: [vocabulary, d].
  Embedding(Backend& backend, Parameter table, float dropout);

  // input: host, [T], each in [0, vocabulary). y: [T, d].
  void Forward(const Pass& pass, int32_t wave, std::span<const int32_t> input,
               Matrix y) const;
  // dy: [T, d], destroyed. Rows of the table add in token order.
  void Backward(const Pass& pass, int32_t wave, std::span<const int32_t> input,
                Matrix dy) const;

 private:
  Backend& backend_;
  const Parameter table_;
  const Dropout dropout_;
};

}  // namespace moe
