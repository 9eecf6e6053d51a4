#include "server/fields.h"

#include <algorithm>
#include <bit>
#include <string_view>

#include "common/base/status_macros.h"
#include "server/refusal.h"

namespace moe {

bool AllFinite(std::span<const float> values) {
  uint32_t worst = 0;
  for (float value : values) {
    worst = std::max(worst, std::bit_cast<uint32_t>(value) & 0x7f800000u);
  }
  return worst < 0x7f800000u;
}

absl::StatusOr<Tensor> DecodeTensor(Backend& backend, const std::string& field,
                                    int64_t rows, int64_t width, const Pieces& bytes) {
  const uint64_t expected = rows * width * sizeof(float);
  if (bytes.size() != expected) {
    return Bad(field, " has ", bytes.size(), " bytes instead of ", expected, " (", rows,
               " rows of ", width, " floats)");
  }
  Tensor tensor(backend, rows, width);
  if (rows == 0) return tensor;
  char* out = reinterpret_cast<char*>(tensor.data());
  for (const std::string_view piece : bytes.pieces()) {
    backend.Upload(piece.data(), out, piece.size());
    out += piece.size();
  }
  if (!backend.AllFinite(tensor.view())) return Bad(field, " has a NaN or an infinity");
  return tensor;
}

absl::Status CheckRow(uint32_t row, int64_t rows) {
  if (row < rows) return absl::OkStatus();
  return Bad("row ", row, " is out of range: there are ", rows);
}

absl::Status CheckAscendingRows(std::span<const uint32_t> row, int64_t rows) {
  for (size_t i = 0; i < row.size(); ++i) {
    RETURN_IF_ERROR(CheckRow(row[i], rows));
    if (i > 0 && row[i - 1] >= row[i]) {
      return Bad("row ", row[i], " comes after row ", row[i - 1], "; rows must ascend");
    }
  }
  return absl::OkStatus();
}

}  // namespace moe
