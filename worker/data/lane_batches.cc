#include "worker/data/lane_batches.h"

#include <glog/logging.h>

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/human.h"
#include "worker/data/vocabulary.h"

namespace moe {
namespace {

void CheckShape(const LaneShape& shape) {
  CHECK(shape.replicas > 0 && shape.waves > 0 && shape.unroll > 0 && shape.lanes > 0);
  CHECK_EQ(shape.lanes % shape.waves, 0);
}

// A position p is the prediction of token p + 1 from token p. Lane l has the positions
// from l * lane_positions, as far as the text has them.
int64_t PositionOf(const LaneShape& shape, int64_t lane_positions, int64_t step,
                   int32_t replica, int32_t wave, int64_t row) {
  const int32_t lanes = shape.lanes_of_wave();
  const int64_t lane =
      int64_t{replica} * shape.lanes + int64_t{wave} * lanes + row % lanes;
  return lane * lane_positions + step * shape.unroll + row / lanes;
}

void FillRows(std::span<const int32_t> tokens, const LaneShape& shape,
              int64_t lane_positions, int64_t step, int32_t replica, int32_t wave,
              std::span<int32_t> input, std::span<int32_t> target) {
  CHECK(replica >= 0 && replica < shape.replicas && wave >= 0 && wave < shape.waves);
  CHECK_EQ(static_cast<int64_t>(input.size()), shape.rows());
  CHECK_EQ(static_cast<int64_t>(target.size()), shape.rows());
  const int64_t positions = static_cast<int64_t>(tokens.size()) - 1;
  for (int64_t row = 0; row < shape.rows(); ++row) {
    const int64_t time = step * shape.unroll + row / shape.lanes_of_wave();
    const int64_t position =
        PositionOf(shape, lane_positions, step, replica, wave, row);
    const bool real = time < lane_positions && position < positions;
    input[row] = real ? tokens[position] : Vocabulary::kEndOfSentence;
    target[row] = real ? tokens[position + 1] : -1;
  }
}

}  // namespace

absl::StatusOr<TrainingBatches> TrainingBatches::Create(std::span<const int32_t> tokens,
                                                        const LaneShape& shape) {
  CheckShape(shape);
  const int64_t needed = shape.all_lanes() * shape.unroll + 1;
  if (static_cast<int64_t>(tokens.size()) < needed) {
    return absl::OutOfRangeError(absl::StrCat(
        "the training text is too short for the job: it has ", FormatCount(tokens.size()),
        " tokens, but one step of ", shape.replicas, " replicas x ", shape.lanes,
        " lanes x ", shape.unroll, " time steps needs ", FormatCount(needed)));
  }
  return TrainingBatches(tokens, shape);
}

TrainingBatches::TrainingBatches(std::span<const int32_t> tokens, const LaneShape& shape)
    : tokens_(tokens),
      shape_(shape),
      lane_positions_((static_cast<int64_t>(tokens.size()) - 1) / shape.all_lanes()),
      steps_(lane_positions_ / shape.unroll) {}

void TrainingBatches::Fill(int64_t step, int32_t replica, int32_t wave,
                           std::span<int32_t> input, std::span<int32_t> target) const {
  CHECK(step >= 0 && step < steps_);
  FillRows(tokens_, shape_, lane_positions_, step, replica, wave, input, target);
}

absl::StatusOr<EvaluationBatches> EvaluationBatches::Create(
    std::span<const int32_t> tokens, const LaneShape& shape) {
  CheckShape(shape);
  if (tokens.size() < 2) {
    return absl::OutOfRangeError(absl::StrCat("the text to evaluate has ", tokens.size(),
                                              " tokens; it needs at least 2"));
  }
  return EvaluationBatches(tokens, shape);
}

EvaluationBatches::EvaluationBatches(std::span<const int32_t> tokens,
                                     const LaneShape& shape)
    : tokens_(tokens),
      shape_(shape),
      lane_positions_((static_cast<int64_t>(tokens.size()) - 2) / shape.all_lanes() + 1),
      batches_((lane_positions_ - 1) / shape.unroll + 1) {}

void EvaluationBatches::Fill(int64_t batch, int32_t replica, int32_t wave,
                             std::span<int32_t> input, std::span<int32_t> target) const {
  CHECK(batch >= 0 && batch < batches_);
  FillRows(tokens_, shape_, lane_positions_, batch, replica, wave, input, target);
}

int64_t EvaluationBatches::Position(int64_t batch, int32_t replica, int32_t wave,
                                    int32_t row) const {
  return PositionOf(shape_, lane_positions_, batch, replica, wave, row);
}

}  // namespace moe
