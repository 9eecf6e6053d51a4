#include "common/job/expert_traffic.h"

#include <gtest/gtest.h>

#include <bit>
#include <set>

namespace moe {
namespace {

v1::Moe MoeOf(int32_t experts, int32_t groups, int32_t k,
              v1::Gating gating = v1::GATING_NOISY_TOP_K) {
  v1::Moe moe;
  moe.set_experts(experts);
  moe.set_groups(groups);
  moe.set_k(k);
  moe.set_gating(gating);
  return moe;
}

void ExpectTraffic(const ExpertTraffic& traffic, double rows, double group_rows,
                   double pairs) {
  EXPECT_NEAR(traffic.rows, rows, 1e-12);
  EXPECT_NEAR(traffic.group_rows, group_rows, 1e-12);
  EXPECT_NEAR(traffic.pairs, pairs, 1e-12);
}

// Over all sets of k experts; the first groups are here.
TEST(ExpertTrafficTest, IsTheMeanOverAllChoices) {
  for (int32_t k = 1; k <= 6; ++k) {
    for (int32_t here = 1; here <= 3; ++here) {
      double sets = 0, rows = 0, group_rows = 0, pairs = 0;
      for (unsigned set = 0; set < 64; ++set) {
        if (std::popcount(set) != k) continue;
        std::set<int> groups;
        for (int e = 0; e < 2 * here; ++e) {
          if (set >> e & 1) {
            groups.insert(e / 2);
            ++pairs;
          }
        }
        ++sets;
        rows += !groups.empty();
        group_rows += static_cast<double>(groups.size());
      }
      SCOPED_TRACE(testing::Message() << "k " << k << ", groups " << here);
      ExpectTraffic(EvenTraffic(MoeOf(6, 3, k), here), rows / sets, group_rows / sets,
                    pairs / sets);
    }
  }
}

TEST(ExpertTrafficTest, SoftmaxSendsEverythingEverywhere) {
  ExpectTraffic(EvenTraffic(MoeOf(8, 4, 0, v1::GATING_SOFTMAX), 2), 1, 2, 4);
}

TEST(ExpertTrafficTest, HierarchicalChoosesGroupsFirst) {
  v1::Moe moe = MoeOf(16, 4, 3);
  moe.set_k_primary(2);
  // Of the 6 pairs of groups, 3 have a given one, and 5 one of two.
  ExpectTraffic(EvenTraffic(moe, 1), 0.5, 0.5, 1.5);
  ExpectTraffic(EvenTraffic(moe, 2), 5.0 / 6, 1, 3);
}

TEST(ExpertTrafficTest, StrictlyBalancedExpertsTakeTheirShare) {
  const v1::Moe moe = MoeOf(8, 4, 2, v1::GATING_STRICTLY_BALANCED);
  ExpectTraffic(EvenTraffic(moe, 1), 1 - 0.75 * 0.75, 1 - 0.75 * 0.75, 0.5);
}

TEST(ExpertTrafficTest, NothingWithoutExperts) {
  ExpectTraffic(EvenTraffic(MoeOf(8, 4, 3), 0), 0, 0, 0);
}

}  // namespace
}  // namespace moe
