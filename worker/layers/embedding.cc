#include "worker/layers/embedding.h"

#include "glog/logging.h"

namespace moe {

Embedding::Embedding(Backend& backend, float dropout)
    : backend_(backend), dropout_(backend, kEmbeddingId, dropout) {}

void Embedding::Forward(const Pass& pass, int32_t wave, ConstMatrix table,
                        std::span<const int32_t> input, Matrix y) const {
  for (int32_t row : input) {
    CHECK(row >= 0 && row < table.rows) << "row " << row << " of " << table.rows;
  }
  backend_.GatherRows(table, input, /*scale=*/nullptr, y);
  dropout_.Forward(pass, wave, y, /*residual=*/{}, y);
}

void Embedding::Backward(const Pass& pass, int32_t wave, std::span<const int32_t> input,
                         Matrix dy, Matrix gradient) const {
  dropout_.Backward(pass, wave, dy, dy);
  backend_.ScatterAddRows(dy, input, gradient);
}

}  // namespace moe
