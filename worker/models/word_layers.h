// The two ends of a language model: the embedding of its input words, and the softmax over its
// target words with the loss. Their parameters are dense, or rows of tables (job.proto, Tables).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/kernels/backend.h"
#include "common/tensor/replica_tree.h"
#include "worker/layers/embedding.h"
#include "worker/layers/parameter.h"
#include "worker/layers/pass.h"
#include "worker/layers/sampled_softmax.h"
#include "worker/layers/softmax_loss.h"
#include "worker/models/step_tables.h"

namespace moe {

// Of one replica; T tokens in each wave. Rows are those of ReplicaModel.
class WordLayers {
 public:
  virtual ~WordLayers() = default;

  // Before the first wave. tables: of what the pass touches, and outlives it; null without tables.
  virtual void BeginStep(const Pass& pass, const StepTables* tables) = 0;
  // input: words, kept for the backward. y: [T, d].
  virtual void Embed(const Pass& pass, int32_t wave, std::span<const int32_t> input,
                     Matrix y) = 0;
  // dy: [T, d], destroyed.
  virtual void EmbedBackward(const Pass& pass, int32_t wave, Matrix dy) = 0;
  // x: [T, d]; target: words, -1 = not counted. The sum of -ln p(target), and the gradients of
  // gradient_scale times it; dx: [T, d].
  virtual double Train(ConstMatrix x, std::span<const int32_t> target,
                       float gradient_scale, Matrix dx) = 0;
  // The sum of -ln p(target).
  virtual double Evaluate(ConstMatrix x, std::span<const int32_t> target) = 0;
};

// Dense: the tensors embedding, softmax.w and softmax.b.
class DenseWordLayers final : public WordLayers {
 public:
  DenseWordLayers(Backend& backend, Parameter embedding, Parameter softmax_w,
                  Parameter softmax_b, float dropout, int64_t rows, int32_t waves);

  void BeginStep(const Pass&, const StepTables*) override {}
  void Embed(const Pass& pass, int32_t wave, std::span<const int32_t> input,
             Matrix y) override;
  void EmbedBackward(const Pass& pass, int32_t wave, Matrix dy) override;
  double Train(ConstMatrix x, std::span<const int32_t> target, float gradient_scale,
               Matrix dx) override;
  double Evaluate(ConstMatrix x, std::span<const int32_t> target) override;

 private:
  const Parameter table_;
  const Embedding embedding_;
  SoftmaxLoss softmax_;
  std::vector<std::vector<int32_t>> input_;  // [waves][T]
};

// Tables: training has a sampled softmax. In evaluation the softmax is the servers'.
class TableWordLayers final : public WordLayers {
 public:
  TableWordLayers(Backend& backend, int64_t d, float dropout, int32_t waves);

  void BeginStep(const Pass& pass, const StepTables* tables) override;
  void Embed(const Pass& pass, int32_t wave, std::span<const int32_t> input,
             Matrix y) override;
  void EmbedBackward(const Pass& pass, int32_t wave, Matrix dy) override;
  double Train(ConstMatrix x, std::span<const int32_t> target, float gradient_scale,
               Matrix dx) override;
  // Not to be called.
  double Evaluate(ConstMatrix x, std::span<const int32_t> target) override;

  // Of the training step, by word; waves added in order.
  SparseRows EmbeddingGradients() const;
  SparseRows SoftmaxGradients() const;

 private:
  Backend& backend_;
  const int64_t d_;
  const Embedding embedding_;
  SampledSoftmax softmax_;
  const StepTables* tables_ = nullptr;
  TableGradients gradients_;
  std::vector<std::vector<int32_t>> input_;  // [waves][T] rows of tables_->input
};

}  // namespace moe
