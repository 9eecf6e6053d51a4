// Parameters and multiply-adds of a model, counted as the paper counts them (tables 7 and
// 8).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "proto/moe/v1/job.pb.h"

namespace moe {

struct LayerCount {
  std::string name;
  // All parameters of the layer.
  int64_t parameters = 0;
  // Multiply-adds per timestep of the forward pass; k active experts and both gate
  // matrices.
  int64_t multiply_adds = 0;
};

struct ModelCount {
  std::vector<LayerCount> layers;
  // Without embedding and softmax, as the paper's "#parameters" and "ops/timestep".
  int64_t parameters = 0;
  int64_t multiply_adds = 0;
  int64_t embedding_parameters = 0;
  int64_t softmax_parameters = 0;
};

ModelCount CountModel(const v1::Job& job);

}  // namespace moe
