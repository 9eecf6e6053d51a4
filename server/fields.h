// Fields that several messages have, checked and decoded. Errors are INVALID_ARGUMENT.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/pieces.h"
#include "common/kernels/backend.h"

namespace moe {

bool AllFinite(std::span<const float> values);

// Each row is one of `rows`.
absl::Status CheckRow(uint32_t row, int64_t rows);
absl::Status CheckAscendingRows(std::span<const uint32_t> row, int64_t rows);

// [rows, width] floats of the bytes field `field`, on the backend and finite.
absl::StatusOr<Tensor> DecodeTensor(Backend& backend, const std::string& field,
                                    int64_t rows, int64_t width, const Pieces& bytes);

}  // namespace moe
