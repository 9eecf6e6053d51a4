#include "worker/layers/sampled_softmax.h"

#include <algorithm>
#include <vector>

#include "common/base/protocol.h"
#include "glog/logging.h"

namespace moe {

double SampledSoftmax::Train(ConstMatrix x, const Rows& candidates, const Rows& targets,
                             const Targets& of, float gradient_scale,
                             const Gradients& dcandidates, const Gradients& dtargets,
                             Matrix dx) {
  const auto tokens = static_cast<int64_t>(of.row.size());
  CHECK_EQ(x.rows, tokens);
  const int64_t block = std::min<int64_t>(tokens, kSampledSoftmaxTokens);
  const Tensor logits(backend_, block, candidates.w.rows + 1);
  double loss_sum = 0;
  for (int64_t begin = 0; begin < tokens; begin += block) {
    const int64_t rows = std::min(block, tokens - begin);
    loss_sum += TrainBlock(
        x.Rows(begin, rows), candidates, targets,
        {of.row.subspan(begin, rows), of.candidate.subspan(begin, rows)}, gradient_scale,
        dcandidates, dtargets, dx.Rows(begin, rows), logits.Rows(0, rows));
  }
  return loss_sum;
}

double SampledSoftmax::TrainBlock(ConstMatrix x, const Rows& candidates,
                                  const Rows& targets, const Targets& of,
                                  float gradient_scale, const Gradients& dcandidates,
                                  const Gradients& dtargets, Matrix dx, Matrix logits) {
  const int64_t count = candidates.w.rows;
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
