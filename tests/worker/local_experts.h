// The expert servers' part of one mixture, in the test's own process and on its
// backend: joins the rows of all replicas as servers do, in (replica, token) order for
// each expert.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/job/mixtures.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/job.pb.h"
#include "worker/models/replica_model.h"

namespace moe::testing {

class LocalExperts {
 public:
  LocalExperts(Backend& backend, const v1::Job& job, const Mixture& mixture);

  int32_t experts() const { return static_cast<int32_t>(weights_.size()); }
  // The expert's matrices W_1, W_2, ...
  std::vector<Tensor>& weights(int32_t expert) { return weights_[expert]; }

  void BeginStep();
  // wave: the batch's place in the step, call * waves + wave. calls: [replicas]. Returns
  // [replicas][T * out].
  std::vector<std::vector<float>> Forward(int32_t wave,
                                          std::span<const MoeCall* const> calls);
  // Totals over the calls since BeginStep.
  const std::vector<double>& importance() const { return importance_; }
  const std::vector<double>& load() const { return load_; }

  struct Gradients {
    std::vector<std::vector<float>> dx;     // [replicas][T * in]
    std::vector<std::vector<float>> dgate;  // [replicas][p]
  };
  // dy: [replicas][T * out].
  Gradients Backward(int32_t wave, std::span<const std::span<const float>> dy);

  // At the close, over the rows of all waves.
  int64_t rows(int32_t expert) const;
  // By matrix.
  std::vector<Tensor> WeightGradients(int32_t expert) const;
  struct Moments {
    std::vector<Tensor> m, v;  // by matrix
  };
  // moments: [experts].
  void Update(const OptimizerStep& step, std::span<const Moments> moments);

 private:
  struct Pair {
    int32_t replica = 0;
    int32_t token = 0;
    int32_t choice = 0;  // position in the call's arrays
  };
  // p pairs, by expert, then in (replica, token) order. Host copies of device memory.
  struct Wave {
    std::vector<Pair> pairs;
    std::vector<int64_t> begin;               // [experts + 1] of each expert's pairs
    std::vector<float> x;                     // [p, in]
    std::vector<float> gate;                  // [p]
    std::vector<std::vector<float>> hidden;   // [p, h] of each hidden layer
    std::vector<std::vector<float>> dhidden;  // [p, h]
    std::vector<float> gated_dy;              // [p, out]
    std::vector<int32_t> tokens;              // [replicas]
    std::vector<size_t> choices;              // [replicas] of each call
  };
  // The step's rows, by expert, then in (wave, replica, token) order.
  struct Batch {
    std::vector<ExpertRows> experts;
    Tensor x, gated_dy;
    std::vector<Tensor> hidden, dhidden;
  };

  std::vector<ExpertRows> RowsOf(const Wave& wave) const;
  ExpertRows RowsOf(int32_t expert, int64_t begin, int64_t rows) const;
  Tensor Upload(const std::vector<float>& values, int64_t cols) const;
  // Of each hidden layer.
  std::vector<Tensor> HiddenTensors(int64_t rows) const;
  std::vector<Tensor> UploadHidden(const std::vector<std::vector<float>>& values) const;
  Batch Close() const;

  Backend& backend_;
  const int64_t in_;
  const int64_t out_;
  std::vector<int64_t> hidden_;                // width of each hidden layer
  std::vector<std::vector<Tensor>> weights_;   // [experts][matrices]
  std::vector<std::vector<float*>> pointers_;  // to them
  std::vector<Wave> waves_;
  std::vector<double> importance_;
  std::vector<double> load_;
};

}  // namespace moe::testing
