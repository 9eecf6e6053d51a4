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
#include "common/random/random.h"
#include "proto/moe/v1/job.pb.h"
#include "worker/layers/parameter.h"
#include "worker/layers/pass.h"

namespace moe {

// One call of a mixture's gate in a wave. Each call works on as many tokens of the wave's micro-batch
// as any other, the next ones; a MoE layer has one call, of all tokens.
struct GateCall {
  // Not explicit: where there is one call in a wave, the wave names it.
  GateCall(int32_t wave, int32_t call = 0) : wave(wave), call(call) {}

  int32_t wave;
  int32_t call;
};

struct GateCalls {
  int64_t rows = 0;  // T
  int32_t waves = 1;
  int32_t calls = 1;  // in each wave
  // Before its Backward a call's Forward is repeated with the same x: what only Backward needs is kept
  // of one call of each wave at a time.
  bool repeats = false;
  Purpose noise = Purpose::kGateNoise;

  int32_t all() const { return waves * calls; }
  int32_t PlaceOf(GateCall at) const { return at.call * waves + at.wave; }
  // The same for what only Backward needs.
  int32_t kept() const { return repeats ? waves : all(); }
  int32_t KeptPlaceOf(GateCall at) const { return repeats ? at.wave : PlaceOf(at); }
};

// What a gate chose for the T tokens of one call: p pairs of token and expert, by token,
// then by expert. Token t has the pairs [offset[t], offset[t + 1]), any number of them; a
// token without any has the output 0. Host memory.
struct Choices {
  std::vector<int32_t> offset;  // [T + 1]
  std::vector<int32_t> expert;  // [p] ascending within a token
  std::vector<float> gate;      // [p]
};

// Of one call, by expert.
struct GateSums {
  std::vector<double> importance;  // [n]
  std::vector<double> load;        // [n]
};

// Not thread-safe; one call at a time.
class Gate {
 public:
  virtual ~Gate() = default;

  // x: [T, d]. In evaluation a row whose target (host, [T]) is -1 is padding: it has no
  // expert and counts in neither importance nor load.
  virtual void Forward(const Pass& pass, GateCall at, ConstMatrix x,
                       std::span<const int32_t> target) = 0;
  // Valid until the next Forward of the same call; what a Forward repeats with the same pass and x
  // stays where it is.
  virtual const Choices& choices(GateCall at) const = 0;
  // Of the last Forward.
  virtual const GateSums& sums() const = 0;

  // After a Forward in training, with the same pass and x. dgate: [p] <dL/dy, E_i(x)>;
  // dimportance, dload: [n] gradients of the balancing losses by the step's totals. Adds
  // to dx and to the gradients of the parameters.
  virtual void Backward(const Pass& pass, GateCall at, ConstMatrix x,
                        std::span<const float> dgate, std::span<const double> dimportance,
                        std::span<const double> dload, Matrix dx) = 0;
};

// The gate of a mixture; of a hierarchical one the primary gate. parameter: one of its
// tensors by the last part of its name in common/job/model_plan.h ("wg"). layer_id: as of
// Pass::Key.
std::unique_ptr<Gate> MakeGate(
    Backend& backend, uint32_t layer_id, const v1::Moe& moe,
    const std::function<Parameter(const std::string&)>& parameter,
    const GateCalls& calls);

}  // namespace moe
