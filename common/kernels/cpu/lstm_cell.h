// One time step of an LSTM after its products.
#pragma once

#include "common/kernels/cpu/context.h"

namespace moe::cpu {

void LstmCellForward(const Context& context, Matrix gates, ConstMatrix c_prev, Matrix c,
                     Matrix tanh_c, Matrix h);
void LstmCellBackward(const Context& context, ConstMatrix gates, ConstMatrix c_prev,
                      ConstMatrix tanh_c, ConstMatrix dh, Matrix dc, Matrix dgates);

}  // namespace moe::cpu
