#include "server/table_frames.h"

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/tensor/bytes.h"
#include "server/fields.h"
#include "server/refusal.h"

namespace moe {
namespace {

absl::StatusOr<TableShape> ShapeOf(const TableShapes& tables, const std::string& shard) {
  const auto found = tables.find(shard);
  if (found == tables.end()) return Bad("no table shard ", shard, " is here");
  return found->second;
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> DecodeRowSet(const TableShapes& tables,
                                                  const v1::RowSet& rows) {
  ASSIGN_OR_RETURN(const TableShape shape, ShapeOf(tables, rows.shard()));
  const std::string name = absl::StrCat("rows of ", rows.shard());
  ASSIGN_OR_RETURN(const std::vector<uint32_t> row, GetArray<uint32_t>(name, rows.row()));
  RETURN_IF_ERROR(Annotate(CheckAscendingRows(row, shape.rows), name));
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
  RETURN_IF_ERROR(Annotate(CheckAscendingRows(gradient.sum.row, shape.rows), name));
  ASSIGN_OR_RETURN(gradient.sum.value, GetArray<float>(name, node.gradient()));
  const size_t expected = gradient.sum.row.size() * shape.columns;
  if (gradient.sum.value.size() != expected) {
    return Bad(name, " has ", gradient.sum.value.size(), " values instead of ", expected,
               " (", gradient.sum.row.size(), " rows of ", shape.columns, ")");
  }
  if (!AllFinite(gradient.sum.value)) return Bad(name, " has a NaN or an infinity");
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
  ASSIGN_OR_RETURN(input.x, DecodeTensor(backend, "x", tokens, width, Pieces(frame.x())));
  return input;
}

}  // namespace moe
