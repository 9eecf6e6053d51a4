// The gate of one group of a hierarchical MoE (appendix B): noisy top-k (eq. 3-5) among
// the group's b experts, for the rows that the primary gate gave to the group.
//
// A wave's rows are those of all replicas in (replica, token) order. The noise of a row is
// that of its (replica, token) and doesn't depend on its place in a batch. Engine thread
// only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/base/moments.h"
#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/expert.pb.h"
#include "proto/moe/v1/job.pb.h"
#include "proto/moe/v1/parameter.pb.h"
#include "server/frames.h"
#include "server/parameter_block.h"
#include "server/wave_rows.h"

namespace moe {

class SecondaryGate {
 public:
  // parameters: of the shard, whose first two tensors are W_g and W_noise, [d, b]; outlives
  // the gate.
  SecondaryGate(Backend& backend, const v1::Job& job, const ShardSpec& spec,
                ParameterBlock& parameters);

  // What is chosen for each replica's rows (q of all replicas), k experts for each, with
  // the product of both gates. chosen: [R]. Training: waves in ascending order; in
  // evaluation there is no noise, and nothing is kept.
  std::vector<GroupPairs> Forward(v1::Mode mode, uint64_t step, uint32_t wave,
                                  const WaveRows& rows,
                                  std::span<const GroupRows* const> chosen);
  // Of the group's Importance_H and Load_H (eq. 13 and 14), by the totals of all replicas
  // and the waves so far.
  Spread ImportanceSpread() const;
  Spread LoadSpread() const;

  // After the step's last Forward; waves in any order. dgate: [q k] <dL/dy, E_j(x)> of each
  // pair, in Forward's order. moments: of the whole layer and step. Adds the gate's part to
  // dx, [q, d]. Returns [q] dL/dG_primary(x).
  std::vector<float> Backward(uint32_t wave, const BalanceMoments& moments,
                              std::span<const float> dgate, Matrix dx);
  // dL/dLoad_primary of the group; the same in all waves.
  double LoadPrimaryGradient(const BalanceMoments& moments) const;

  // ---- the end of a step; waves: all of the step
  // Of W_g and W_noise, [d, b], valid until Apply; none if the group has no rows.
  const std::vector<Tensor>& Gradients(std::span<const WaveRows> waves);
  // Two, if the group has rows.
  void AppendSquareSums(std::span<const WaveRows> waves,
                        std::vector<v1::TensorSquareSum>* sums);
  // Updates both tensors if the group has rows; forgets the step.
  void Apply(std::span<const WaveRows> waves, double rate, double scale);

 private:
  // q rows.
  struct Wave {
    std::vector<int32_t> row;      // [q] of WaveRows
    std::vector<float> primary;    // [q] G_primary(x)
    std::vector<int64_t> begin;    // [R + 1] first row of each replica
    std::vector<int32_t> chosen;   // [q k] host copies of expert and gate
    std::vector<float> secondary;  // [q k]
    // Until the wave's backward.
    Tensor clean;              // [q, b]
    Tensor raw;                // [q, b]
    Tensor noise;              // [q, b]
    Array<int32_t> expert;     // [q k]
    Array<float> gate;         // [q k]
    Array<int32_t> threshold;  // [q, 2]
    // From the wave's backward on.
    Tensor dclean;  // [q, b]
    Tensor draw;    // [q, b]

    int64_t rows() const { return static_cast<int64_t>(row.size()); }
  };
  // What the step comes to, over all replicas and the waves so far.
  struct Totals {
    int64_t rows = 0;                // |X^(i)|
    double load_primary = 0;         // Load_primary_i
    std::vector<double> importance;  // [b] Importance_H
    std::vector<double> load;        // [b] Load_i(X^(i))
  };

  Matrix wg() const { return {parameters_.w(0), width_, experts_}; }
  Matrix wnoise() const { return {parameters_.w(1), width_, experts_}; }
  // Of the rows [begin, begin + rows).
  GateBatch Batch(const Wave& wave, int64_t begin, int64_t rows) const;
  // Lets the gate choose; returns [R][b] each replica's sums of P(x, j).
  std::vector<std::vector<double>> Choose(v1::Mode mode, uint64_t step, uint32_t wave,
                                          const WaveRows& rows, Wave* w) const;
  void AddTotals(uint32_t wave, std::span<const GroupRows* const> chosen,
                 std::span<const GroupPairs> pairs,
                 std::span<const std::vector<double>> load);
  std::vector<double> LoadH() const;
  // w_load dCV^2/dLoad_H, [b].
  std::vector<double> LoadGradient(const BalanceMoments& moments) const;

  Backend& backend_;
  const uint64_t seed_;
  const v1::Moe moe_;
  const ShardSpec spec_;
  const uint32_t waves_of_step_;
  ParameterBlock& parameters_;
  const int64_t width_;    // d
  const int64_t experts_;  // b
  const int64_t k_;

  // The step in progress.
  std::vector<Wave> waves_;
  Totals totals_;
  std::vector<Tensor> gradients_;  // once formed
};

}  // namespace moe
