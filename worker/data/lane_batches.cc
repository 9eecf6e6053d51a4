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

// A lane is cut off from what stands before it. That concerns few words of a long lane;
// lanes for evaluation that would be shorter than this begin with sentences instead.
constexpr int64_t kMinCutLane = 128;

// A position p is the prediction of token p + 1 from token p.
struct Lane {
  int64_t begin = 0;
  int64_t end = 0;
};

int64_t LaneOf(const LaneShape& shape, int32_t replica, int32_t wave, int64_t row) {
  const int32_t lanes = shape.lanes_of_wave();
  return int64_t{replica} * shape.lanes + int64_t{wave} * lanes + row % lanes;
}

// lane_of: from a lane's number.
template <typename LaneFunction>
void FillRows(std::span<const int32_t> tokens, const LaneShape& shape,
              const LaneFunction& lane_of, int64_t step, int32_t replica, int32_t wave,
              std::span<int32_t> input, std::span<int32_t> target) {
  CHECK(replica >= 0 && replica < shape.replicas && wave >= 0 && wave < shape.waves);
  CHECK_EQ(static_cast<int64_t>(input.size()), shape.rows());
  CHECK_EQ(static_cast<int64_t>(target.size()), shape.rows());
  for (int64_t row = 0; row < shape.rows(); ++row) {
    const Lane lane = lane_of(LaneOf(shape, replica, wave, row));
    const int64_t position =
        lane.begin + step * shape.unroll + row / shape.lanes_of_wave();
    const bool real = position < lane.end;
    input[row] = real ? tokens[position] : Vocabulary::kEndOfSentence;
    target[row] = real ? tokens[position + 1] : -1;
  }
}

// Where each lane begins, and behind them where the last one ends. Lane l begins at
// position l * lane_positions, or at the first sentence from there on.
std::vector<int64_t> EvaluationStarts(std::span<const int32_t> tokens,
                                      const LaneShape& shape) {
  const int64_t positions = static_cast<int64_t>(tokens.size()) - 1;
  const int64_t lane_positions = (positions - 1) / shape.all_lanes() + 1;
  std::vector<int64_t> starts = {0};
  for (int64_t lane = 1; lane < shape.all_lanes(); ++lane) {
    int64_t start = std::min(lane * lane_positions, positions);
    if (lane_positions < kMinCutLane) {
      start = std::find(tokens.begin() + std::max(start, starts.back()),
                        tokens.begin() + positions, Vocabulary::kEndOfSentence) -
              tokens.begin();
    }
    starts.push_back(start);
  }
  starts.push_back(positions);
  return starts;
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
  const auto lane_of = [this](int64_t lane) {
    return Lane{lane * lane_positions_, (lane + 1) * lane_positions_};
  };
  FillRows(tokens_, shape_, lane_of, step, replica, wave, input, target);
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
    : tokens_(tokens), shape_(shape), starts_(EvaluationStarts(tokens, shape)) {
  int64_t longest = 0;
  for (size_t lane = 0; lane + 1 < starts_.size(); ++lane)
    longest = std::max(longest, starts_[lane + 1] - starts_[lane]);
  batches_ = (longest - 1) / shape.unroll + 1;
}

void EvaluationBatches::Fill(int64_t batch, int32_t replica, int32_t wave,
                             std::span<int32_t> input, std::span<int32_t> target) const {
  CHECK(batch >= 0 && batch < batches_);
  const auto lane_of = [this](int64_t lane) {
    return Lane{starts_[lane], starts_[lane + 1]};
  };
  FillRows(tokens_, shape_, lane_of, batch, replica, wave, input, target);
}

int64_t EvaluationBatches::Position(int64_t batch, int32_t replica, int32_t wave,
                                    int32_t row) const {
  return starts_[LaneOf(shape_, replica, wave, row)] + batch * shape_.unroll +
         row / shape_.lanes_of_wave();
}

}  // namespace moe
