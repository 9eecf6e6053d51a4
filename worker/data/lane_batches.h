// How a text is cut into lanes and steps. A lane is one of the sequences that run in
// parallel: a contiguous piece of the text, whose LSTM state is carried from step to
// step. Lane l of replica r is number r * lanes + l of all; a wave has lanes / waves
// consecutive lanes of each replica.
//
// A micro-batch is that of one (step, replica, wave), time-major: row t * lanes_of_wave +
// lane.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace moe {

struct LaneShape {
  int32_t replicas = 1;
  int32_t lanes = 1;  // of each replica
  int32_t waves = 1;  // divides lanes
  int32_t unroll = 1;

  int64_t all_lanes() const { return int64_t{replicas} * lanes; }
  int32_t lanes_of_wave() const { return lanes / waves; }
  int32_t rows() const { return lanes_of_wave() * unroll; }
};

// For training: all lanes are equally long and whole steps only; what remains at their
// ends is left out.
class TrainingBatches {
 public:
  // tokens must outlive the object. OUT_OF_RANGE, with the figures, if they don't fill
  // one step.
  static absl::StatusOr<TrainingBatches> Create(std::span<const int32_t> tokens,
                                                const LaneShape& shape);

  // At least 1. An epoch is that many steps; the next one begins at the lanes' starts
  // again.
  int64_t steps_per_epoch() const { return steps_; }
  // step counts from 0 within the epoch. input, target: [rows] out.
  void Fill(int64_t step, int32_t replica, int32_t wave, std::span<int32_t> input,
            std::span<int32_t> target) const;

 private:
  TrainingBatches(std::span<const int32_t> tokens, const LaneShape& shape);

  std::span<const int32_t> tokens_;
  LaneShape shape_;
  int64_t lane_positions_;
  int64_t steps_;
};

// For evaluation: every token but the first is predicted exactly once. Lanes are equally
// long, as far as the text goes; or, where they would have less than 128 tokens (as when a
// job with thousands of lanes evaluates), each begins with the first sentence from there
// on, so that no word is predicted without its sentence's beginning, and some may be empty.
class EvaluationBatches {
 public:
  // tokens must outlive the object. OUT_OF_RANGE if there are fewer than two.
  static absl::StatusOr<EvaluationBatches> Create(std::span<const int32_t> tokens,
                                                  const LaneShape& shape);

  int64_t batches() const { return batches_; }
  // As TrainingBatches::Fill. Behind a lane's end the input is <eos> and the target -1.
  void Fill(int64_t batch, int32_t replica, int32_t wave, std::span<int32_t> input,
            std::span<int32_t> target) const;
  // Where in the text the input of a row with a target stands.
  int64_t Position(int64_t batch, int32_t replica, int32_t wave, int32_t row) const;

 private:
  EvaluationBatches(std::span<const int32_t> tokens, const LaneShape& shape);

  std::span<const int32_t> tokens_;
  LaneShape shape_;
  std::vector<int64_t> starts_;  // of each lane, and the end of the last; positions
  int64_t batches_;
};

}  // namespace moe
