// Why a message is refused.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace moe {

// For what is wrong at any time.
template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// For what would be good at another time or from another sender.
template <typename... Parts>
absl::Status Untimely(const Parts&... parts) {
  return absl::FailedPreconditionError(absl::StrCat(parts...));
}

}  // namespace moe
