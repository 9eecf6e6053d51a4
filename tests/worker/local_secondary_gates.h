// The secondary gates of one hierarchical MoE layer, as servers have them, in the test's
// own process: between the primary gates of the replicas and LocalExperts.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/base/moments.h"
#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/job.pb.h"
#include "server/parameter_block.h"
#include "server/secondary_gate.h"
#include "server/wave_rows.h"
#include "tests/worker/local_experts.h"
#include "worker/gating/gate.h"
#include "worker/models/replica_model.h"

namespace moe::testing {

class LocalSecondaryGates {
 public:
  // layer: index into Model.layers.
  LocalSecondaryGates(Backend& backend, const v1::Job& job, int32_t layer);

  // W_g and W_noise of every group.
  struct GateTensor {
    std::string name;
    Matrix value;
    // Of the last step; empty if the group had no rows.
    std::vector<float> gradient;
  };
  std::vector<GateTensor> Tensors();

  void BeginStep();
  // calls: [replicas], of the primary gate. Returns what a flat layer's gate with the same
  // choices would have called; valid until the next Forward of the wave.
  std::vector<MoeCall> Forward(PassMode mode, uint64_t step, int32_t wave,
                               std::span<const MoeCall* const> calls);
  // Of Importance_H and Load_H over the step.
  BalanceMoments Moments() const;
  // gradients: what LocalExperts::Backward returned; becomes the primary gate's, [replicas]
  // dgate of its choices, and the gates' part is added to dx. Returns [groups]
  // dL/dLoad_primary.
  std::vector<double> Backward(int32_t wave, LocalExperts::Gradients* gradients);

 private:
  struct Group {
    ShardSpec spec;
    std::unique_ptr<ParameterBlock> parameters;
    std::unique_ptr<SecondaryGate> gate;
  };
  // One wave of one group, [replicas].
  struct GroupWave {
    std::vector<GroupRows> rows;
    std::vector<std::vector<int32_t>> choice;    // of each row, in the primary call
    std::vector<std::vector<int32_t>> position;  // of each pair, in the flat call
  };
  struct Wave {
    std::vector<GroupWave> groups;
    std::vector<size_t> primary_choices;  // [replicas]
    std::vector<Choices> flat;            // [replicas]
  };

  Backend& backend_;
  const int64_t d_;
  const int64_t experts_;
  std::vector<Group> groups_;
  std::vector<Wave> waves_;
  std::vector<double> zeros_;   // [experts]
  std::vector<WaveRows> rows_;  // of the training step in progress
};

}  // namespace moe::testing
