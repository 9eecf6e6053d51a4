#include "worker/models/word_layers.h"

#include <utility>

#include "glog/logging.h"

namespace moe {

DenseWordLayers::DenseWordLayers(Backend& backend, Parameter embedding,
                                 Parameter softmax_w, Parameter softmax_b, float dropout,
                                 int64_t rows, int32_t waves)
    : table_(embedding),
      embedding_(backend, dropout),
      softmax_(backend, softmax_w, softmax_b, rows),
      input_(waves) {}

void DenseWordLayers::Embed(const Pass& pass, int32_t wave,
                            std::span<const int32_t> input, Matrix y) {
  input_[wave].assign(input.begin(), input.end());
  embedding_.Forward(pass, wave, table_.value, input, y);
}

void DenseWordLayers::EmbedBackward(const Pass& pass, int32_t wave, Matrix dy) {
  embedding_.Backward(pass, wave, input_[wave], dy, table_.gradient);
}

double DenseWordLayers::Train(ConstMatrix x, std::span<const int32_t> target,
                              float gradient_scale, Matrix dx) {
  return softmax_.Train(x, target, gradient_scale, dx);
}

double DenseWordLayers::Evaluate(ConstMatrix x, std::span<const int32_t> target) {
  return softmax_.Evaluate(x, target);
}

TableWordLayers::TableWordLayers(Backend& backend, int64_t d, float dropout,
                                 int32_t waves)
    : backend_(backend),
      d_(d),
      embedding_(backend, dropout),
      softmax_(backend),
      input_(waves) {}

void TableWordLayers::BeginStep(const Pass& pass, const StepTables* tables) {
  CHECK(tables != nullptr);
  tables_ = tables;
  if (pass.training()) gradients_ = ZeroGradients(backend_, *tables, d_);
}

void TableWordLayers::Embed(const Pass& pass, int32_t wave,
                            std::span<const int32_t> input, Matrix y) {
  input_[wave].clear();
  for (const int32_t word : input) {
    input_[wave].push_back(PlaceOf(tables_->input.words, word));
  }
  embedding_.Forward(pass, wave, tables_->input.w.view(), input_[wave], y);
}

void TableWordLayers::EmbedBackward(const Pass& pass, int32_t wave, Matrix dy) {
  embedding_.Backward(pass, wave, input_[wave], dy, gradients_.input.view());
}

double TableWordLayers::Train(ConstMatrix x, std::span<const int32_t> target,
                              float gradient_scale, Matrix dx) {
  const StepCandidates& candidates = *tables_->candidates;
  std::vector<int32_t> row;
  std::vector<int32_t> candidate;
  for (const int32_t word : target) {
    row.push_back(word < 0 ? -1 : PlaceOf(tables_->target.words, word));
    const auto found = candidates.place.find(word);
    candidate.push_back(found == candidates.place.end() ? -1 : found->second);
  }
  return softmax_.Train(x, {candidates.rows.w.view(), candidates.rows.b.data()},
                        {tables_->target.w.view(), tables_->target.b.data()},
                        {row, candidate}, gradient_scale,
                        {gradients_.candidate_w.view(), gradients_.candidate_b.data()},
                        {gradients_.target_w.view(), gradients_.target_b.data()}, dx);
}

double TableWordLayers::Evaluate(ConstMatrix, std::span<const int32_t>) {
  LOG(FATAL) << "the softmax of an evaluation is the servers'";
}

SparseRows TableWordLayers::EmbeddingGradients() const {
  return moe::EmbeddingGradients(*tables_, gradients_);
}

SparseRows TableWordLayers::SoftmaxGradients() const {
  return moe::SoftmaxGradients(*tables_, gradients_);
}

}  // namespace moe
