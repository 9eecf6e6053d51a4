#include "client/chosen_pairs.h"

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/tensor/bytes.h"

namespace moe {
namespace {

// The elements of a field of a server.
template <typename T>
absl::StatusOr<std::vector<T>> Elements(const char* field, const std::string& bytes) {
  absl::StatusOr<std::vector<T>> elements = GetArray<T>(field, bytes);
  if (elements.ok()) return elements;
  return absl::InternalError(elements.status().message());
}

}  // namespace

absl::Status AppendChosen(const ExpertLayout& layout, const RoutingPlan::Group& group,
                          v1::Mode mode, const v1::GroupRouting& chosen,
                          ChosenPairs* pairs) {
  ASSIGN_OR_RETURN(const std::vector<uint32_t> row,
                   Elements<uint32_t>("row", chosen.row()));
  ASSIGN_OR_RETURN(const std::vector<uint32_t> expert,
                   Elements<uint32_t>("expert", chosen.expert()));
  ASSIGN_OR_RETURN(const std::vector<float> gate, Elements<float>("gate", chosen.gate()));
  const size_t k = layout.k;
  const size_t expected = k * group.row.size();
  const size_t gates = mode == v1::MODE_EVALUATE ? expected : 0;
  if (row.size() != expected || expert.size() != expected || gate.size() != gates) {
    return absl::InternalError(
        absl::StrFormat("%d rows, %d experts and %d gates are chosen instead of %d, %d "
                        "and %d: %d for each "
                        "of %d rows",
                        row.size(), expert.size(), gate.size(), expected, expected, gates,
                        k, group.row.size()));
  }
  const auto b = static_cast<uint32_t>(layout.experts_per_group());
  for (size_t p = 0; p < row.size(); ++p) {
    if (row[p] != group.row[p / k] || expert[p] >= b ||
        (p % k > 0 && expert[p - 1] >= expert[p])) {
      return absl::InternalError(
          absl::StrFormat("the chosen pair %d (row %d, expert %d) is none of the group, "
                          "or out of order",
                          p, row[p], expert[p]));
    }
    pairs->token.push_back(group.token[p / k]);
    pairs->expert.push_back(static_cast<int32_t>(group.group * b + expert[p]));
  }
  pairs->gate.insert(pairs->gate.end(), gate.begin(), gate.end());
  return absl::OkStatus();
}

}  // namespace moe
