#include "worker/layers/softmax_loss.h"

#include "glog/logging.h"

namespace moe {

SoftmaxLoss::SoftmaxLoss(Backend& backend, Parameter w, Parameter b, int64_t rows)
    : backend_(backend), w_(w), b_(b), logits_(backend, rows, w.value.rows) {
  CHECK_EQ(b.value.size(), w.value.rows);
}

double SoftmaxLoss::Forward(ConstMatrix x, std::span<const int32_t> target,
                            float gradient_scale) {
  backend_.BroadcastRow(b_.value.data, logits_.view());
  backend_.Gemm(Transpose::kNo, Transpose::kYes, 1, x, w_.value, 1, logits_.view());
  return backend_.SoftmaxCrossEntropy(logits_.view(), target, gradient_scale);
}

double SoftmaxLoss::Evaluate(ConstMatrix x, std::span<const int32_t> target) {
  return Forward(x, target, /*gradient_scale=*/0);
}

double SoftmaxLoss::Train(ConstMatrix x, std::span<const int32_t> target,
                          float gradient_scale, Matrix dx) {
  const double loss_sum = Forward(x, target, gradient_scale);
  const Matrix dlogits = logits_.view();
  backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, dlogits, x, 1, w_.gradient);
  backend_.AddColumnSums(dlogits, b_.gradient.data);
  backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, dlogits, w_.value, 0, dx);
  return loss_sum;
}

}  // namespace moe
