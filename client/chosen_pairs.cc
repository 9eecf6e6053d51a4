#include "client/chosen_pairs.h"

#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"

namespace moe {
namespace {

template <typename T>
std::vector<T> Elements(const std::string& bytes) {
  std::vector<T> elements(bytes.size() / sizeof(T));
  if (!elements.empty()) {
    std::memcpy(elements.data(), bytes.data(), elements.size() * sizeof(T));
  }
  return elements;
}

}  // namespace

absl::Status AppendChosen(const ExpertLayout& layout, const RoutingPlan::Group& group,
                          const v1::GroupRouting& chosen, ChosenPairs* pairs) {
  const auto row = Elements<uint32_t>(chosen.row());
  const auto expert = Elements<uint32_t>(chosen.expert());
  const auto gate = Elements<float>(chosen.gate());
  if (expert.size() != row.size() || gate.size() != row.size()) {
    return absl::InternalError(absl::StrFormat(
        "%d rows, %d experts and %d gates are chosen instead of equally many", row.size(),
        expert.size(), gate.size()));
  }
  const auto b = static_cast<uint32_t>(layout.experts_per_group());
  size_t at = 0;  // in the group's rows
  for (size_t p = 0; p < row.size(); ++p) {
    while (at < group.row.size() && group.row[at] < row[p]) ++at;
    if (at == group.row.size() || group.row[at] != row[p] || expert[p] >= b ||
        (p > 0 && std::pair(row[p - 1], expert[p - 1]) >= std::pair(row[p], expert[p]))) {
      return absl::InternalError(absl::StrFormat(
          "the chosen pair %d (row %d, expert %d) is none of the group, or "
          "out of order",
          p, row[p], expert[p]));
    }
    pairs->token.push_back(group.token[at]);
    pairs->expert.push_back(static_cast<int32_t>(group.group * b + expert[p]));
    pairs->gate.push_back(gate[p]);
  }
  return absl::OkStatus();
}

}  // namespace moe
