#pragma once

#include "common/tensor/matrix.h"

namespace moe {

// One parameter tensor as a layer sees it. The layer reads the value and adds to the
// gradient.
struct Parameter {
  ConstMatrix value;
  Matrix gradient;
};

}  // namespace moe
