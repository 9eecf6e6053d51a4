// Leaving a function early with an absl::Status.
#pragma once

#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/base/string_view.h"

#define RETURN_IF_ERROR(expr)                                   \
  do {                                                          \
    if (absl::Status moe_status_ = (expr); !moe_status_.ok()) { \
      return moe_status_;                                       \
    }                                                           \
  } while (false)

// ASSIGN_OR_RETURN(auto x, F()); several statements, so never the body of an `if` without
// braces.
#define ASSIGN_OR_RETURN(lhs, expr) \
  MOE_ASSIGN_OR_RETURN_(MOE_CONCATENATE_(moe_status_or_, __LINE__), lhs, expr)

#define MOE_ASSIGN_OR_RETURN_(status_or, lhs, expr) \
  auto status_or = (expr);                          \
  if (!status_or.ok()) {                            \
    return std::move(status_or).status();           \
  }                                                 \
  lhs = *std::move(status_or)

#define MOE_CONCATENATE_(a, b) MOE_CONCATENATE_INNER_(a, b)
#define MOE_CONCATENATE_INNER_(a, b) a##b

namespace moe {

// "context: message", with the code and the payloads of `status`. OK stays OK.
inline absl::Status Annotate(const absl::Status& status, std::string_view context) {
  if (status.ok()) return status;
  absl::Status annotated(status.code(),
                         absl::StrCat(ToAbsl(context), ": ", status.message()));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
    annotated.SetPayload(url, payload);
  });
  return annotated;
}

}  // namespace moe
