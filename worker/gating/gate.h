// What chooses the experts of each token of a micro-batch, and its part in the balancing
// losses. docs/design/gating.md has what each kind computes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/kernels/backend.h"
#include "proto/moe/v1/job.pb.h"
#include "worker/layers/parameter.h"
#include "worker/layers/pass.h"

namespace moe {

// What a gate chose for one micro-batch of T tokens: p pairs of token and expert, by token,
// then by expert. Token t has the pairs [offset[t], offset[t + 1]), any number of them; a
// token without any has the output 0. Host memory.
struct Choices {
  std::vector<int32_t> offset;     // [T + 1]
  std::vector<int32_t> expert;     // [p] ascending within a token
  std::vector<float> gate;         // [p]
  std::vector<double> importance;  // [n]
  std::vector<double> load;        // [n]
};

// Not thread-safe; one wave at a time.
class Gate {
 public:
  virtual ~Gate() = default;

  // x: [T, d]. In evaluation a row whose target (host, [T]) is -1 is padding: it has no
  // expert and counts in neither importance nor load.
  virtual void Forward(const Pass& pass, int32_t wave, ConstMatrix x,
                       std::span<const int32_t> target) = 0;
  // Valid until the next Forward of the wave.
  virtual const Choices& choices(int32_t wave) const = 0;

  // After a Forward in training, with the same pass and x. dgate: [p] <dL/dy, E_i(x)>;
  // dimportance, dload: [n] gradients of the balancing losses by the step's totals. Adds
  // to dx and to the gradients of the parameters.
  virtual void Backward(const Pass& pass, int32_t wave, ConstMatrix x,
                        std::span<const float> dgate, std::span<const double> dimportance,
                        std::span<const double> dload, Matrix dx) = 0;
};

// The gate of a MoE layer; of a hierarchical one the primary gate. parameter: one of its
// tensors by the last part of its name in common/job/model_plan.h ("wg"). layer_id: as of
// Pass::Key. rows: T.
std::unique_ptr<Gate> MakeGate(
    Backend& backend, uint32_t layer_id, const v1::Moe& moe,
    const std::function<Parameter(const std::string&)>& parameter, int64_t rows,
    int32_t waves);

}  // namespace moe
