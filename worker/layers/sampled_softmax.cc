#include "worker/layers/sampled_softmax.h"

#include <vector>

#include "glog/logging.h"

namespace moe {

SampledSoftmax::SampledSoftmax(Backend& backend, int64_t rows, int64_t candidates)
    : backend_(backend), logits_(backend, rows, candidates + 1) {}

double SampledSoftmax::Train(ConstMatrix x, const Rows& candidates, const Rows& targets,
                             const Targets& of, float gradient_scale,
                             const Gradients& dcandidates, const Gradients& dtargets,
                             Matrix dx) {
  const int64_t count = candidates.w.rows;
  CHECK_EQ(count + 1, logits_.cols());
  const Matrix logits = logits_.view();
  const Matrix of_candidates(logits.data, logits.rows, count, logits.stride);
  backend_.BroadcastRow(candidates.b, of_candidates);
  backend_.Gemm(Transpose::kNo, Transpose::kYes, 1, x, candidates.w, 1, of_candidates);
  backend_.TargetLogits(x, targets.w, targets.b, of.row, of.candidate, logits);

  std::vector<int32_t> column(of.row.size(), static_cast<int32_t>(count));
  for (size_t t = 0; t < column.size(); ++t) {
    if (of.row[t] < 0) column[t] = -1;
  }
  const double loss_sum = backend_.SoftmaxCrossEntropy(logits, column, gradient_scale);

  backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, of_candidates, x, 1, dcandidates.w);
  backend_.AddColumnSums(of_candidates, dcandidates.b);
  backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, of_candidates, candidates.w, 0, dx);
  backend_.TargetLogitsBackward(logits, x, targets.w, of.row, dtargets.w, dtargets.b, dx);
  return loss_sum;
}

}  // namespace moe
