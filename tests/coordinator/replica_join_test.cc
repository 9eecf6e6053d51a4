#include "server/coordinator/replica_join.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "common/job/placement.h"

namespace moe {
namespace {

using ::testing::ElementsAre;

// Sums whose bits depend on the order of addition.
double LossOf(uint32_t replica) { return 1e16 / (replica + 1) + 0.1 * replica; }

v1::ReportEvaluationRequest ReportOf(
    const std::vector<v1::ReplicaAssignment>& assignments, const std::string& worker) {
  v1::ReportEvaluationRequest report;
  report.set_member(worker);
  v1::LayerBalance* layer = report.add_balance();
  layer->set_layer(1);
  uint64_t assigned[] = {0, 0};
  double importance[] = {0, 0};
  for (const v1::ReplicaAssignment& assignment : assignments) {
    if (assignment.worker() != worker) continue;
    v1::ReplicaLoss* loss = report.add_losses();
    loss->set_replica(assignment.replica());
    loss->set_loss_sum(LossOf(assignment.replica()));
    loss->set_tokens(10 + assignment.replica());
    assigned[0] += 30;
    assigned[1] += 10;
    layer->set_unrouted(layer->unrouted() + 2);
    importance[0] += 2;
    importance[1] += 2;
  }
  layer->set_cv_importance(worker == assignments.front().worker() ? 0.5 : 0);
  layer->set_cv_load(worker == assignments.front().worker() ? 0.25 : 0);
  layer->mutable_assigned()->Add(assigned, assigned + 2);
  layer->mutable_importance()->Add(importance, importance + 2);
  return report;
}

TEST(ReplicaJoinTest, DependsOnReplicasAlone) {
  constexpr uint32_t kReplicas = 6;
  double sum = 0;
  uint64_t tokens = 0;
  for (uint32_t r = 0; r < kReplicas; ++r) {
    sum += LossOf(r);
    tokens += 10 + r;
  }
  const std::vector<std::vector<std::string>> clusters = {
      {"w1"}, {"w1", "w2"}, {"w1", "w2", "w3", "w4"}};
  for (std::vector<std::string> workers : clusters) {
    const auto assignments = AssignReplicas(kReplicas, workers);
    do {
      ReplicaJoin join(assignments);
      for (const std::string& worker : workers) {
        EXPECT_FALSE(join.complete());
        const auto report = ReportOf(assignments, worker);
        ASSERT_TRUE(join.Add(worker, report.losses(), report.balance()).ok());
        ASSERT_TRUE(join.Add(worker, report.losses(), report.balance()).ok());
      }
      ASSERT_TRUE(join.complete());
      EXPECT_EQ(join.loss_sum(), sum);
      EXPECT_EQ(join.tokens(), tokens);
      EXPECT_EQ(join.perplexity(), std::exp(sum / static_cast<double>(tokens)));
      const auto step = join.StepBalance();
      ASSERT_EQ(step.size(), 1);
      EXPECT_EQ(step[0].layer(), 1);
      EXPECT_EQ(step[0].cv_importance(), 0.5);
      EXPECT_EQ(step[0].cv_load(), 0.25);
      EXPECT_EQ(step[0].max_over_mean_load(), 1.5);
      EXPECT_EQ(step[0].experts_per_token(), 3.2);
      EXPECT_EQ(step[0].unrouted_share(), 0.16);
      const auto evaluation = join.EvaluationBalance();
      ASSERT_EQ(evaluation.size(), 1);
      EXPECT_EQ(evaluation[0].cv_importance(), 0);
      EXPECT_EQ(evaluation[0].cv_load(), 0.5);
      EXPECT_EQ(evaluation[0].max_over_mean_load(), 1.5);
      EXPECT_EQ(evaluation[0].experts_per_token(), 3.2);
      EXPECT_EQ(evaluation[0].unrouted_share(), 0.16);
    } while (std::next_permutation(workers.begin(), workers.end()));
  }
}

TEST(ReplicaJoinTest, NamesWhoIsMissing) {
  const auto assignments = AssignReplicas(3, {"w1", "w2", "w3"});
  ReplicaJoin join(assignments);
  const auto report = ReportOf(assignments, "w2");
  ASSERT_TRUE(join.Add("w2", report.losses(), report.balance()).ok());
  EXPECT_THAT(join.missing(), ElementsAre("w1", "w3"));
}

TEST(ReplicaJoinTest, RefusesOthersReplicasAndLayers) {
  const auto assignments = AssignReplicas(3, {"w1", "w2"});
  ReplicaJoin join(assignments);
  auto report = ReportOf(assignments, "w1");
  EXPECT_EQ(join.Add("w2", report.losses(), report.balance()).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(join.Add("stranger", report.losses(), report.balance()).ok());
  *report.add_losses() = report.losses(0);
  EXPECT_FALSE(join.Add("w1", report.losses(), report.balance()).ok());
  report.mutable_losses()->RemoveLast();
  report.mutable_losses()->RemoveLast();
  EXPECT_FALSE(join.Add("w1", report.losses(), report.balance()).ok());

  report = ReportOf(assignments, "w1");
  ASSERT_TRUE(join.Add("w1", report.losses(), report.balance()).ok());
  report = ReportOf(assignments, "w2");
  report.mutable_balance(0)->add_assigned(1);
  EXPECT_EQ(join.Add("w2", report.losses(), report.balance()).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace moe
