#include "worker/layers/embedding.h"

#include "glog/logging.h"

namespace moe {

Embedding::Embedding(Backend& backend, Parameter table, float dropout)
    : backend_(backend), table_(table), dropout_(backend, kEmbeddingId, dropout) {}

void Embedding::Forward(const Pass& pass, int32_t wave, std::span<const int32_t> input,
                        Matrix y) const {
  for (int32_t word : input) {
    CHECK(word >= 0 && word < table_.value.rows)
        << "word " << word << " of a vocabulary of " << table_.value.rows;
  }
  backend_.GatherRows(table_.value, input, /*scale=*/nullptr, y);
  dropout_.Forward(pass, wave, y, /*residual=*/{}, y);
}

void Embedding::Backward(const Pass& pass, int32_t wave, std::span<const int32_t> input,
                         Matrix dy) const {
  dropout_.Backward(pass, wave, dy, dy);
  backend_.ScatterAddRows(dy, input, table_.gradient);
}

}  // namespace moe
