#include "server/coordinator/evaluations.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/human.h"
#include "server/coordinator/progress.h"

namespace moe {

ReplicaJoin& Evaluations::Join(uint64_t step, v1::Split split,
                               const std::vector<v1::ReplicaAssignment>& assignments,
                               absl::Time now) {
  return evaluations_.try_emplace({step, split}, assignments, now).first->second.join;
}

std::string Evaluations::Overdue(absl::Time now, absl::Duration timeout) const {
  for (const auto& [key, evaluation] : evaluations_) {
    if (evaluation.join.complete() || now - evaluation.since < timeout) continue;
    return absl::StrCat("the ", SplitName(key.second), " evaluation after step ",
                        key.first, " has waited ", FormatTimeSpan(timeout), " for ",
                        absl::StrJoin(evaluation.join.missing(), ", "));
  }
  return "";
}

void Evaluations::Excuse(absl::Duration pause) {
  for (auto& [key, evaluation] : evaluations_) evaluation.since += pause;
}

}  // namespace moe
