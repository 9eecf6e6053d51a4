// The language model straight from the equations: scalar loops in double, one row after
// the other, no code in common with the layers, the kernels or the client. Its gradients
// are central differences of its own loss. Slow; for tests.
//
// Noise and dropout masks come from common/random, with the keys that the worker uses; the
// candidates of a sampled softmax, and how often was drawn, from worker/layers/candidates.h.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "proto/moe/v1/job.pb.h"

namespace moe::reference {

// Parameters, gradients or moments by the names of common/job/model_plan.h.
using NamedValues = std::map<std::string, std::vector<double>>;

// One micro-batch, time-major.
struct MicroBatch {
  std::vector<int32_t> input;
  std::vector<int32_t> target;
};

// By replica, wave, layer (empty if it carries none): c, then the output r, of each lane.
struct LaneState {
  std::vector<double> c;
  std::vector<double> r;
};
using CarriedState = std::vector<std::vector<std::vector<std::vector<LaneState>>>>;

class ReferenceModel {
 public:
  explicit ReferenceModel(const v1::Job& job) : job_(job) {}

  CarriedState ZeroState() const;

  struct Result {
    double loss_sum = 0;      // sum of -ln p(target)
    double balance_loss = 0;  // all L_importance and L_load
    double loss = 0;          // loss_sum / tokens + balance_loss
    // L_batchwise (eq. 20, in the logarithms of X and T) / m, its mean over the tokens of
    // the step. It has a part in the gradients of the thresholds alone, and they in nothing
    // else.
    double threshold_loss = 0;
    // By mixture, named as the tensors are ("layer1.moe."): how many rows each expert had.
    std::map<std::string, std::vector<int64_t>> rows_of_expert;
    CarriedState state;
  };
  // batches: [replica][wave]. In training with noise and dropout.
  Result Forward(const NamedValues& parameters,
                 const std::vector<std::vector<MicroBatch>>& batches,
                 const CarriedState& state, uint64_t step, bool training) const;

  // dloss/dparameter of a training step, for every element.
  NamedValues Gradients(const NamedValues& parameters,
                        const std::vector<std::vector<MicroBatch>>& batches,
                        const CarriedState& state, uint64_t step) const;

 private:
  const v1::Job job_;
};

// One Adam update of every element (Kingma & Ba 2015, algorithm 1).
struct AdamValues {
  double rate = 0;
  double beta1 = 0;
  double beta2 = 0;
  double epsilon = 0;
  int64_t count = 1;
};
void AdamUpdate(const AdamValues& adam, const NamedValues& gradients,
                NamedValues* parameters, NamedValues* m, NamedValues* v);

}  // namespace moe::reference
