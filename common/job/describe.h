// Parameters and multiply-adds of a model, counted as the paper counts them (tables 7 and
// 8), and the memory that its parameters take.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "proto/moe/v1/job.pb.h"

namespace moe {

struct LayerCount {
  // layer<l>.lstm | layer<l>.moe | layer<l>.recurrent_moe
  std::string name;
  // All parameters of the layer, LSTM biases included.
  int64_t parameters = 0;
  // Per timestep of the forward pass, in products of matrices only: the active experts and
  // the gate matrices (the primary gate's and those of the active groups), no biases.
  int64_t multiply_adds = 0;
};

struct ModelCount {
  std::vector<LayerCount> layers;
  // Without embedding and softmax, as the paper's "#parameters" and "ops/timestep".
  int64_t parameters = 0;
  int64_t multiply_adds = 0;
  // 0 while the job leaves the vocabulary to the data.
  int64_t embedding_parameters = 0;
  int64_t softmax_parameters = 0;
};

// Of some parameters, on the servers together.
struct StoredCount {
  int64_t parameters = 0;
  int64_t parameter_bytes = 0;
  int64_t optimizer_bytes = 0;

  int64_t bytes() const { return parameter_bytes + optimizer_bytes; }
  // 0 where there are no parameters.
  double bytes_per_parameter() const {
    return parameters > 0 ? static_cast<double>(bytes()) / static_cast<double>(parameters)
                          : 0;
  }
};

struct ModelStored {
  // Without embedding and softmax while the job leaves the vocabulary to the data.
  StoredCount dense;
  // Embedding and softmax of a job with tables, once the vocabulary is known.
  StoredCount tables;
  // The experts' matrices.
  StoredCount experts;
};

// `job` is valid (job_file.h).
ModelCount CountModel(const v1::Job& job);
ModelStored CountStored(const v1::Job& job);

}  // namespace moe
