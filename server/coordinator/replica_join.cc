#include "server/coordinator/replica_join.h"

#include <glog/logging.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/base/moments.h"

namespace moe {
namespace {

double MaxOverMean(const google::protobuf::RepeatedField<uint64_t>& assigned) {
  double sum = 0;
  double max = 0;
  for (uint64_t count : assigned) {
    sum += static_cast<double>(count);
    max = std::max(max, static_cast<double>(count));
  }
  return sum == 0 ? 0 : max * assigned.size() / sum;
}

// What follows from the choices alone.
void SetChoices(const v1::LayerBalance& total, uint64_t tokens,
                v1::BalanceStatus* status) {
  status->set_max_over_mean_load(MaxOverMean(total.assigned()));
  if (tokens == 0) return;
  uint64_t pairs = 0;
  for (uint64_t count : total.assigned()) pairs += count;
  const auto n = static_cast<double>(tokens);
  status->set_experts_per_token(static_cast<double>(pairs) / n);
  status->set_unrouted_share(static_cast<double>(total.unrouted()) / n);
}

}  // namespace

absl::Status ReplicaJoin::Add(
    const std::string& member,
    const google::protobuf::RepeatedPtrField<v1::ReplicaLoss>& losses,
    const google::protobuf::RepeatedPtrField<v1::LayerBalance>& balance) {
  if (reports_.contains(member)) return absl::OkStatus();
  std::set<uint32_t> owned;
  for (const v1::ReplicaAssignment& assignment : assignments_) {
    if (assignment.worker() == member) owned.insert(assignment.replica());
  }
  std::set<uint32_t> reported;
  for (const v1::ReplicaLoss& loss : losses) reported.insert(loss.replica());
  if (reported != owned || static_cast<size_t>(losses.size()) != owned.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(member, " reported losses of replicas that aren't exactly its own"));
  }
  if (!reports_.empty()) {
    const std::vector<v1::LayerBalance>& other = reports_.begin()->second.balance;
    const auto same_size = [](const v1::LayerBalance& a, const v1::LayerBalance& b) {
      return a.layer() == b.layer() && a.mixture() == b.mixture() &&
             a.assigned_size() == b.assigned_size() &&
             a.importance_size() == b.importance_size();
    };
    if (!std::equal(balance.begin(), balance.end(), other.begin(), other.end(),
                    same_size)) {
      return absl::InvalidArgumentError(
          absl::StrCat(member, " reported the balance of other layers or experts than ",
                       reports_.begin()->first));
    }
  }
  for (const v1::ReplicaLoss& loss : losses) losses_[loss.replica()] = loss;
  reports_[member].balance.assign(balance.begin(), balance.end());
  return absl::OkStatus();
}

bool ReplicaJoin::complete() const { return losses_.size() == assignments_.size(); }

std::vector<std::string> ReplicaJoin::missing() const {
  std::set<std::string> workers;
  for (const v1::ReplicaAssignment& assignment : assignments_) {
    if (!reports_.contains(assignment.worker())) workers.insert(assignment.worker());
  }
  return {workers.begin(), workers.end()};
}

double ReplicaJoin::loss_sum() const {
  double sum = 0;
  for (const auto& [replica, loss] : losses_) sum += loss.loss_sum();
  return sum;
}

uint64_t ReplicaJoin::tokens() const {
  uint64_t tokens = 0;
  for (const auto& [replica, loss] : losses_) tokens += loss.tokens();
  return tokens;
}

double ReplicaJoin::perplexity() const {
  const uint64_t n = tokens();
  return n == 0 ? 0 : std::exp(loss_sum() / static_cast<double>(n));
}

std::vector<v1::LayerBalance> ReplicaJoin::TotalBalance() const {
  std::vector<v1::LayerBalance> totals;
  for (const auto& [member, report] : reports_) {
    if (totals.empty()) {
      totals = report.balance;
      continue;
    }
    for (size_t i = 0; i < totals.size(); ++i) {
      totals[i].set_unrouted(totals[i].unrouted() + report.balance[i].unrouted());
      for (int e = 0; e < totals[i].assigned_size(); ++e) {
        totals[i].set_assigned(e, totals[i].assigned(e) + report.balance[i].assigned(e));
      }
      for (int e = 0; e < totals[i].importance_size(); ++e) {
        totals[i].set_importance(
            e, totals[i].importance(e) + report.balance[i].importance(e));
      }
    }
  }
  return totals;
}

std::vector<v1::BalanceStatus> ReplicaJoin::StepBalance() const {
  CHECK(complete());
  const std::vector<v1::LayerBalance>& first =
      reports_.at(assignments_.front().worker()).balance;
  std::vector<v1::BalanceStatus> balance;
  for (const v1::LayerBalance& total : TotalBalance()) {
    v1::BalanceStatus& status = balance.emplace_back();
    status.set_layer(total.layer());
    status.set_mixture(total.mixture());
    status.set_cv_importance(first[balance.size() - 1].cv_importance());
    status.set_cv_load(first[balance.size() - 1].cv_load());
    SetChoices(total, tokens(), &status);
  }
  return balance;
}

std::vector<v1::BalanceStatus> ReplicaJoin::EvaluationBalance() const {
  CHECK(complete());
  std::vector<v1::BalanceStatus> balance;
  for (const v1::LayerBalance& total : TotalBalance()) {
    v1::BalanceStatus& status = balance.emplace_back();
    status.set_layer(total.layer());
    status.set_mixture(total.mixture());
    const std::vector<double> importance(total.importance().begin(),
                                         total.importance().end());
    const std::vector<double> load(total.assigned().begin(), total.assigned().end());
    status.set_cv_importance(CoefficientOfVariation(importance));
    status.set_cv_load(CoefficientOfVariation(load));
    SetChoices(total, tokens(), &status);
  }
  return balance;
}

}  // namespace moe
