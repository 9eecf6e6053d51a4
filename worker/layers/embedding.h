#pragma once

#include <cstdint>
#include <span>

#include "common/kernels/backend.h"
#include "worker/layers/dropout.h"
#include "worker/layers/pass.h"

namespace moe {

// y_t = dropout(table[input_t]). Keeps nothing from forward to backward.
class Embedding {
 public:
  Embedding(Backend& backend, float dropout);

  // input: host, [T], each a row of the table [rows, d]. y: [T, d].
  void Forward(const Pass& pass, int32_t wave, ConstMatrix table,
               std::span<const int32_t> input, Matrix y) const;
  // dy: [T, d], destroyed. Adds to the gradient [rows, d] in token order.
  void Backward(const Pass& pass, int32_t wave, std::span<const int32_t> input, Matrix dy,
                Matrix gradient) const;

 private:
  Backend& backend_;
  const Dropout dropout_;
};

}  // namespace moe
