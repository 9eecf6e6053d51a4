#include "client/routing_plan.h"

#include <algorithm>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// The plan's lists for one server, each found by a scan over all choices.
void ExpectServer(const ExpertLayout& layout, int32_t server,
                  const std::vector<int32_t>& offset, const std::vector<int32_t>& expert,
                  const std::vector<float>& gate, const RoutingPlan::Server& actual) {
  // Groups take the place of experts where these have gates of their own.
  const int32_t b = layout.hierarchical ? 1 : layout.experts / layout.groups;
  std::vector<uint32_t> rows;
  for (size_t t = 0; t + 1 < offset.size(); ++t) {
    bool here = false;
    for (int32_t c = offset[t]; c < offset[t + 1]; ++c) {
      here = here || layout.server_of_group[expert[c] / b] == server;
    }
    if (here) rows.push_back(static_cast<uint32_t>(t));
  }
  EXPECT_EQ(actual.token, rows);

  size_t position = 0;
  for (int32_t g = 0; g < layout.groups; ++g) {
    if (layout.server_of_group[g] != server) continue;
    ASSERT_LT(position, actual.groups.size());
    const RoutingPlan::Group& group = actual.groups[position++];
    EXPECT_EQ(group.group, g);
    RoutingPlan::Group expected;
    std::set<int32_t> distinct;
    for (uint32_t row = 0; row < rows.size(); ++row) {
      for (int32_t local = 0; local < b; ++local) {
        for (int32_t choice = offset[rows[row]]; choice < offset[rows[row] + 1];
             ++choice) {
          if (expert[choice] != g * b + local) continue;
          expected.row.push_back(row);
          expected.expert.push_back(local);
          expected.gate.push_back(gate[choice]);
          expected.choice.push_back(choice);
          distinct.insert(static_cast<int32_t>(rows[row]));
        }
      }
    }
    EXPECT_EQ(group.row, expected.row);
    EXPECT_EQ(group.expert, expected.expert);
    EXPECT_EQ(group.gate, expected.gate);
    EXPECT_EQ(group.choice, expected.choice);
    EXPECT_EQ(group.token, std::vector<int32_t>(distinct.begin(), distinct.end()));
  }
  EXPECT_EQ(position, actual.groups.size());
}

TEST(RoutingPlan, EqualsTheNaiveLoops) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    ExpertLayout layout;
    layout.groups = 1 + static_cast<int32_t>(random() % 6);
    layout.experts = layout.groups * (1 + static_cast<int32_t>(random() % 4));
    layout.servers = 1 + static_cast<int32_t>(random() % 5);
    for (int32_t g = 0; g < layout.groups; ++g) {
      layout.server_of_group.push_back(static_cast<int32_t>(random() % layout.servers));
    }
    layout.hierarchical = round % 3 == 0;
    const int32_t choices = layout.hierarchical ? layout.groups : layout.experts;
    const int32_t tokens = static_cast<int32_t>(random() % 40);
    std::vector<int32_t> offset = {0};
    std::vector<int32_t> expert;
    std::vector<float> gate;
    for (int32_t t = 0; t < tokens; ++t) {
      std::vector<int32_t> all(choices);
      for (int32_t e = 0; e < choices; ++e) all[e] = e;
      std::shuffle(all.begin(), all.end(), random);
      const int32_t chosen = static_cast<int32_t>(random() % (choices + 1));
      std::sort(all.begin(), all.begin() + chosen);
      expert.insert(expert.end(), all.begin(), all.begin() + chosen);
      offset.push_back(static_cast<int32_t>(expert.size()));
      for (int32_t j = 0; j < chosen; ++j) {
        gate.push_back(static_cast<float>(random() % 1000) / 1000);
      }
    }
    const RoutingPlan plan(layout, offset, expert, gate);
    EXPECT_EQ(plan.tokens(), tokens);
    EXPECT_EQ(plan.choices(), static_cast<int64_t>(expert.size()));
    ASSERT_EQ(plan.servers().size(), static_cast<size_t>(layout.servers));
    for (int32_t s = 0; s < layout.servers; ++s) {
      ExpectServer(layout, s, offset, expert, gate, plan.servers()[s]);
    }
    if (testing::Test::HasFailure()) FAIL() << "round " << round;
  }
}

TEST(RoutingPlan, ATokenGoesOnceToAServerWithSeveralOfItsGroups) {
  const ExpertLayout layout{.experts = 6,
                            .groups = 3,
                            .servers = 2,
                            .server_of_group = {1, 0, 1},
                            .standby_of_group = {}};
  // Token 0: experts 0 and 5, both on server 1; token 1: none; token 2: experts 1 and
  // 2.
  const std::vector<int32_t> offset = {0, 2, 2, 4};
  const std::vector<int32_t> expert = {0, 5, 1, 2};
  const std::vector<float> gate = {.25f, .75f, .5f, .5f};
  const RoutingPlan plan(layout, offset, expert, gate);
  const RoutingPlan::Server& s0 = plan.servers()[0];
  const RoutingPlan::Server& s1 = plan.servers()[1];
  EXPECT_THAT(s0.token, ElementsAre(2u));
  EXPECT_THAT(s1.token, ElementsAre(0u, 2u));
  ASSERT_EQ(s0.groups.size(), 1u);
  ASSERT_EQ(s1.groups.size(), 2u);
  EXPECT_THAT(s1.groups[0].row, ElementsAre(0u, 1u));
  EXPECT_THAT(s1.groups[0].expert, ElementsAre(0u, 1u));
  EXPECT_THAT(s1.groups[0].choice, ElementsAre(0, 2));
  EXPECT_THAT(s1.groups[1].row, ElementsAre(0u));
  EXPECT_THAT(s1.groups[1].expert, ElementsAre(1u));
  EXPECT_THAT(s1.groups[1].gate, ElementsAre(.75f));
}

TEST(RoutingPlan, BothCopiesOfAGroupGetItsRows) {
  const ExpertLayout layout{.experts = 4,
                            .groups = 2,
                            .servers = 3,
                            .server_of_group = {0, 1},
                            .standby_of_group = {1, -1}};
  const std::vector<int32_t> offset = {0, 2, 3, 4};
  const std::vector<int32_t> expert = {0, 3, 2, 1};
  const std::vector<float> gate = {.25f, .75f, 1, 1};
  const RoutingPlan plan(layout, offset, expert, gate);
  const RoutingPlan::Server& first = plan.servers()[0];
  const RoutingPlan::Server& second = plan.servers()[1];
  EXPECT_THAT(first.token, ElementsAre(0u, 2u));
  EXPECT_THAT(second.token, ElementsAre(0u, 1u, 2u));
  EXPECT_THAT(plan.servers()[2].groups, IsEmpty());
  ASSERT_EQ(first.groups.size(), 1u);
  ASSERT_EQ(second.groups.size(), 2u);
  EXPECT_EQ(second.groups[0].group, 0);
  // By its own frame's rows, the same tokens.
  EXPECT_THAT(first.groups[0].row, ElementsAre(0u, 1u));
  EXPECT_THAT(second.groups[0].row, ElementsAre(0u, 2u));
  EXPECT_EQ(first.groups[0].token, second.groups[0].token);
  EXPECT_EQ(first.groups[0].expert, second.groups[0].expert);
  EXPECT_EQ(first.groups[0].choice, second.groups[0].choice);
  EXPECT_EQ(plan.choices(), 4);
}

TEST(RoutingPlan, KeepsEmptyGroupsAndEmptyServers) {
  const ExpertLayout layout{.experts = 2,
                            .groups = 2,
                            .servers = 3,
                            .server_of_group = {0, 2},
                            .standby_of_group = {}};
  const RoutingPlan plan(layout, std::vector<int32_t>{0, 1}, std::vector<int32_t>{0},
                         std::vector<float>{1});
  ASSERT_EQ(plan.servers().size(), 3u);
  EXPECT_THAT(plan.servers()[1].groups, IsEmpty());
  ASSERT_EQ(plan.servers()[2].groups.size(), 1u);
  EXPECT_THAT(plan.servers()[2].token, IsEmpty());
  EXPECT_THAT(plan.servers()[2].groups[0].row, IsEmpty());
}

}  // namespace
}  // namespace moe
