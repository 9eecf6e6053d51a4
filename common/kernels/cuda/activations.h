// Sigmoid, dropout and the LSTM cell.
#pragma once

#include "common/kernels/cuda/context.h"

namespace moe::cuda {

void SigmoidForward(const Context& context, ConstMatrix x, Matrix y);
void SigmoidBackward(const Context& context, ConstMatrix y, ConstMatrix dy, Matrix dx);
void DropoutForward(const Context& context, RandomKey key, float rate, ConstMatrix x,
                    ConstMatrix residual, Matrix y);
void DropoutBackward(const Context& context, RandomKey key, float rate, ConstMatrix dy,
                     Matrix dx);
void LstmCellForward(const Context& context, Matrix gates, ConstMatrix c_prev, Matrix c,
                     Matrix tanh_c, Matrix h);
void LstmCellBackward(const Context& context, ConstMatrix gates, ConstMatrix c_prev,
                      ConstMatrix tanh_c, ConstMatrix dh, Matrix dc, Matrix dgates);

}  // namespace moe::cuda
