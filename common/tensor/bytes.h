// Arrays of numbers in the `bytes` fields of messages: little-endian, without padding, and
// not necessarily aligned there.
#pragma once

#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/base/string_view.h"

namespace moe {

// values: a vector or span of numbers.
template <typename Values>
void PutArray(const Values& values, std::string* bytes) {
  bytes->assign(reinterpret_cast<const char*>(values.data()),
                values.size() * sizeof(*values.data()));
}

// INVALID_ARGUMENT, with the field's name, if that is no whole number of elements.
template <typename T>
absl::StatusOr<std::vector<T>> GetArray(std::string_view field,
                                        const std::string& bytes) {
  if (bytes.size() % sizeof(T) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(field), " has ", bytes.size(),
                                                   " bytes, which is no multiple of ",
                                                   sizeof(T)));
  }
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace moe
