#include "server/table_frames.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/protocol.h"
#include "common/base/status_macros.h"
#include "common/tensor/bytes.h"
#include "server/refusal.h"

namespace moe {
namespace {

absl::StatusOr<TableShape> ShapeOf(const TableShapes& tables, const std::string& shard) {
  const auto found = tables.find(shard);
  if (found == tables.end()) return Bad("no table shard ", shard, " is here");
  return found->second;
}

// Ascending rows of a shard.
absl::Status CheckRows(std::span<const uint32_t> row, int64_t rows) {
  for (size_t i = 0; i < row.size(); ++i) {
    if (row[i] >= rows) {
      return Bad("row ", row[i], " is out of range: there are ", rows);
    }
    if (i > 0 && row[i - 1] >= row[i]) {
      return Bad("row ", row[i], " comes after row ", row[i - 1], "; rows must ascend");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> DecodeRowSet(const TableShapes& tables,
                                                  const v1::RowSet& rows) {
  ASSIGN_OR_RETURN(const TableShape shape, ShapeOf(tables, rows.shard()));
  const std::string name = absl::StrCat("rows of ", rows.shard());
  ASSIGN_OR_RETURN(const std::vector<uint32_t> row, GetArray<uint32_t>(name, rows.row()));
  RETURN_IF_ERROR(Annotate(CheckRows(row, shape.rows), name));
  return std::vector<int32_t>(row.begin(), row.end());
}

absl::StatusOr<RowGradient> DecodeRowGradient(const TableShapes& tables,
                                              const v1::RowGradientNode& node) {
  const std::string name = absl::StrCat("gradient of ", node.shard(), " node (",
                                        node.level(), ", ", node.index(), ")");
  ASSIGN_OR_RETURN(const TableShape shape, ShapeOf(tables, node.shard()));
  RowGradient gradient;
  gradient.shard = node.shard();
  gradient.node = {node.level(), node.index()};
  ASSIGN_OR_RETURN(gradient.sum.row, GetArray<uint32_t>(name, node.row()));
  RETURN_IF_ERROR(Annotate(CheckRows(gradient.sum.row, shape.rows), name));
  ASSIGN_OR_RETURN(gradient.sum.value, GetArray<float>(name, node.gradient()));
  const size_t expected = gradient.sum.row.size() * shape.columns;
  if (gradient.sum.value.size() != expected) {
    return Bad(name, " has ", gradient.sum.value.size(), " values instead of ", expected,
               " (", gradient.sum.row.size(), " rows of ", shape.columns, ")");
  }
  const auto finite = [](float value) { return std::isfinite(value); };
  if (!std::all_of(gradient.sum.value.begin(), gradient.sum.value.end(), finite)) {
    return Bad(name, " has a NaN or an infinity");
  }
  return gradient;
}

absl::StatusOr<ScoreInput> DecodeScore(Backend& backend, int64_t width,
                                       int64_t vocabulary, const v1::ScoreFrame& frame) {
  ScoreInput input;
  input.replica = frame.replica();
  ASSIGN_OR_RETURN(input.target, GetArray<int32_t>("target", frame.target()));
  for (const int32_t word : input.target) {
    if (word < 0 || word >= vocabulary) {
      return Bad("target ", word, " is no word of a vocabulary of ", vocabulary);
    }
  }
  const auto tokens = static_cast<int64_t>(input.target.size());
  if (tokens > kMaxScoreTokens) {
    return Bad("has ", tokens, " tokens instead of at most ", kMaxScoreTokens);
  }
  const uint64_t expected = tokens * width * sizeof(float);
  if (frame.x().size() != expected) {
    return Bad("x has ", frame.x().size(), " bytes instead of ", expected, " (", tokens,
               " targets of ", width, " floats)");
  }
  input.x = Tensor(backend, tokens, width);
  backend.Upload(frame.x().data(), input.x.data(), frame.x().size());
  if (!backend.AllFinite(input.x.view())) return Bad("x has a NaN or an infinity");
  return input;
}

}  // namespace moe
