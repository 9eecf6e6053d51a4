#include "worker/layers/moe_output.h"

#include "glog/logging.h"

namespace moe {

MoeOutput::MoeOutput(Backend& backend, bool sigmoid, int64_t rows, int64_t cols,
                     int32_t waves)
    : backend_(backend), sigmoid_(sigmoid), gradient_(rows * cols) {
  if (sigmoid) y_ = Tensor(backend, rows, cols);
  for (int32_t w = 0; w < waves; ++w) outputs_.emplace_back(backend, rows, cols);
}

void MoeOutput::Forward(int32_t wave, std::span<const float> y) {
  Tensor& output = outputs_[wave];
  CHECK_EQ(static_cast<int64_t>(y.size()), output.size());
  if (sigmoid_) {
    y_.Upload(y);
    backend_.SigmoidForward(y_.view(), output.view());
  } else {
    output.Upload(y);
  }
}

std::span<const float> MoeOutput::Backward(int32_t wave, Matrix doutput) {
  CHECK(doutput.contiguous());
  if (sigmoid_) backend_.SigmoidBackward(outputs_[wave].view(), doutput, doutput);
  backend_.Download(doutput.data, gradient_.data(), gradient_.size() * sizeof(float));
  return gradient_;
}

}  // namespace moe
