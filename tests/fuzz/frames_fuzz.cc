// What workers send, decoded: refused, or within the bounds that the engine relies on.
#include <glog/logging.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "common/kernels/backend.h"
#include "proto/moe/v1/expert.pb.h"
#include "server/frames.h"
#include "server/table_frames.h"
#include "tests/fuzz/target.h"
#include "tests/server/made_step.h"

namespace moe::fuzz {
namespace {

constexpr int64_t kTableRows = 9;
constexpr int64_t kTableColumns = testing::kWidth + 1;
constexpr char kTable[] = "softmax/rows0";
const std::vector<uint32_t> kOwned = {0, 1};

Backend& TheBackend() {
  static Backend* const backend = [] {
    std::string error;
    Backend* const made = MakeCpuBackend(1, &error).release();
    CHECK(made != nullptr) << error;
    return made;
  }();
  return *backend;
}

const ModelPlan& Plan() {
  static const ModelPlan* const plan = new ModelPlan(MakeModelPlan(testing::MadeJob()));
  return *plan;
}

LayerShape ShapeOf(bool hierarchical) {
  LayerShape shape;
  shape.in = shape.out = testing::kWidth;
  shape.experts = testing::kExperts;
  shape.experts_per_group = testing::kPerGroup;
  shape.hierarchical = hierarchical;
  shape.groups = {0, 1};
  return shape;
}

void CheckRows(const std::vector<int32_t>& rows, int64_t below) {
  for (const int32_t row : rows) CHECK(row >= 0 && row < below) << row;
}

void CheckTensor(const Tensor& tensor, int64_t rows, int64_t columns) {
  CHECK_EQ(tensor.rows(), rows);
  CHECK_EQ(tensor.cols(), columns);
  CHECK(rows == 0 || TheBackend().AllFinite(tensor.view()));
}

void TryForward(const LayerShape& shape, v1::Mode mode, const v1::ForwardFrame& frame) {
  const absl::StatusOr<ForwardInput> input =
      DecodeForward(TheBackend(), shape, mode, frame, Pieces(frame.x()));
  if (!input.ok()) return;
  const auto rows = static_cast<int64_t>(input->token.size());
  CheckRows(input->token, input->tokens);
  CheckTensor(input->x, rows, shape.in);
  CHECK_EQ(input->pairs.size(), shape.hierarchical ? 0 : shape.groups.size());
  CHECK_EQ(input->rows.size(), shape.hierarchical ? shape.groups.size() : 0);
  for (const GroupPairs& pairs : input->pairs) {
    CheckRows(pairs.row, rows);
    CheckRows(pairs.expert, shape.experts_per_group);
    CHECK_EQ(pairs.gate.size(), pairs.row.size());
    for (const float gate : pairs.gate) CHECK(gate >= 0 && gate <= kMostGate) << gate;
    const size_t sums = mode == v1::MODE_TRAIN ? testing::kPerGroup : 0;
    CHECK_EQ(pairs.importance.size(), sums);
    CHECK_EQ(pairs.load.size(), sums);
  }
  for (const GroupRows& of_group : input->rows) {
    CheckRows(of_group.row, rows);
    CHECK_EQ(of_group.gate.size(), of_group.row.size());
    CHECK(std::isfinite(of_group.load));
  }
}

void TryBackward(const LayerShape& shape, const v1::BackwardFrame& frame) {
  const auto rows = static_cast<int64_t>(frame.replica() % 16);
  const absl::StatusOr<BackwardInput> input =
      DecodeBackward(TheBackend(), shape, rows, frame, Pieces(frame.dy()));
  if (!input.ok()) return;
  CheckTensor(input->dy, rows, shape.out);
  CHECK_EQ(input->moments.has_value(), shape.hierarchical);
}

void TryClose(const v1::CloseRequest& request) {
  std::map<std::string, int64_t> dense;
  std::vector<std::string> states;
  for (const ShardSpec& shard : Plan().shards) {
    if (shard.kind == ShardKind::kDense) dense[shard.id] = Plan().SizeOf(shard);
    if (shard.kind == ShardKind::kReplica && shard.replica < kOwned.size()) {
      states.push_back(shard.id);
    }
  }
  TableShapes tables;
  if (request.row_gradients_size() > 0) tables[kTable] = {kTableRows, kTableColumns};
  v1::CloseRequest owned = request;
  owned.mutable_replicas()->Assign(kOwned.begin(), kOwned.end());
  const absl::StatusOr<CloseInput> input =
      DecodeClose(dense, tables, states, testing::kReplicas, owned);
  if (!input.ok()) return;
  CHECK_EQ(input->replica_states.size(), states.size());
  for (const CloseInput::Gradient& gradient : input->gradients) {
    CHECK_EQ(gradient.sum.size(), static_cast<size_t>(dense.at(gradient.shard)));
  }
  for (const RowGradient& gradient : input->row_gradients) {
    for (const uint32_t row : gradient.sum.row) CHECK_LT(row, kTableRows);
    CHECK_EQ(gradient.sum.value.size(), gradient.sum.row.size() * kTableColumns);
  }
}

void TryPull(const v1::PullRequest& request) {
  for (const v1::RowSet& set : request.rows()) {
    const auto rows = DecodeRowSet({{kTable, {kTableRows, kTableColumns}}}, set);
    if (rows.ok()) CheckRows(*rows, kTableRows);
  }
}

void TryScore(const v1::ScoreRequest& request) {
  for (const v1::ScoreFrame& frame : request.frames()) {
    const auto input = DecodeScore(TheBackend(), testing::kWidth, kTableRows, frame);
    if (!input.ok()) continue;
    CheckRows(input->target, kTableRows);
    CheckTensor(input->x, static_cast<int64_t>(input->target.size()), testing::kWidth);
  }
}

std::string Flat(const v1::ExchangeRequest& request) {
  return '\0' + request.SerializeAsString();
}

}  // namespace

std::map<std::string, std::string> Seeds() {
  v1::ExchangeRequest pull = testing::PullOf({"dense/0"}, 0);
  v1::RowSet& rows = *pull.mutable_pull()->add_rows();
  rows.set_shard(kTable);
  rows.set_row(std::string("\1\0\0\0\2\0\0\0", 8));
  v1::ExchangeRequest score;
  v1::ScoreFrame& frame = *score.mutable_score()->add_frames();
  frame.set_x(testing::Bytes(std::vector<float>(testing::kWidth, 0.5f)));
  frame.set_target(std::string("\4\0\0\0", 4));
  v1::ExchangeRequest close = testing::CloseOf(Plan(), 0, kOwned);
  std::string small_close = Flat(close);
  v1::RowGradientNode& node = *close.mutable_close()->add_row_gradients();
  node.set_shard(kTable);
  node.set_level(1);
  node.set_row(std::string("\3\0\0\0", 4));
  node.set_gradient(testing::Bytes(std::vector<float>(kTableColumns, 0.5f)));
  const v1::ExchangeRequest forward = testing::ForwardOf(0, 0, kOwned);
  return {{"forward", Flat(forward)},
          {"evaluation", Flat(testing::ForwardOf(0, 0, kOwned, v1::MODE_EVALUATE))},
          {"hierarchical", '\1' + testing::Hierarchical(forward).SerializeAsString()},
          {"backward", Flat(testing::BackwardOf(0, 0, kOwned))},
          {"moments", '\1' + testing::Hierarchical(testing::BackwardOf(0, 0, kOwned),
                                                   {{1, 2}, {3, 4}})
                                 .SerializeAsString()},
          {"close", small_close},
          {"close_of_rows", Flat(close)},
          {"pull", Flat(pull)},
          {"score", Flat(score)}};
}

}  // namespace moe::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moe;
  fuzz::Reader input(data, size);
  const LayerShape shape = fuzz::ShapeOf(input.Take<uint8_t>() % 2 == 1);
  const std::string_view bytes = input.Rest();
  v1::ExchangeRequest request;
  if (!request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return 0;
  for (const v1::ForwardFrame& frame : request.forward().frames()) {
    fuzz::TryForward(shape, request.forward().id().mode(), frame);
  }
  for (const v1::BackwardFrame& frame : request.backward().frames()) {
    fuzz::TryBackward(shape, frame);
  }
  if (request.has_close()) fuzz::TryClose(request.close());
  fuzz::TryPull(request.pull());
  fuzz::TryScore(request.score());
  return 0;
}
