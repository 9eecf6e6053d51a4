#include "worker/layers/dropout.h"

#include "common/random/random.h"

namespace moe {

void Dropout::Forward(const Pass& pass, int32_t wave, ConstMatrix x, ConstMatrix residual,
                      Matrix y) const {
  const float rate = pass.training() ? rate_ : 0;
  backend_.DropoutForward(pass.Key(Purpose::kDropout, layer_id_, wave), rate, x, residual,
                          y);
}

void Dropout::Backward(const Pass& pass, int32_t wave, ConstMatrix dy, Matrix dx) const {
  backend_.DropoutBackward(pass.Key(Purpose::kDropout, layer_id_, wave), rate_, dy, dx);
}

}  // namespace moe
