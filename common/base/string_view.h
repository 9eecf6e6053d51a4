// Debian's Abseil has a string_view of its own, which doesn't convert to or from the
// standard one.
#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace moe {

inline absl::string_view ToAbsl(std::string_view text) {
  return {text.data(), text.size()};
}
inline std::string_view ToStd(absl::string_view text) {
  return {text.data(), text.size()};
}

}  // namespace moe
