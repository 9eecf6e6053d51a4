#include "client/balance_totals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

namespace moe {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kGroups = 3;
constexpr int32_t kPerGroup = 4;

ExpertLayout Layout(bool hierarchical) {
  ExpertLayout layout;
  layout.experts = kGroups * kPerGroup;
  layout.groups = kGroups;
  layout.servers = 1;
  layout.server_of_group = {0, 0, 0};
  layout.hierarchical = hierarchical;
  return layout;
}

std::vector<double> Numbers(double first) {
  std::vector<double> numbers;
  for (int i = 0; i < kGroups * kPerGroup; ++i) numbers.push_back(first + 1.0 / (1 + i));
  return numbers;
}

std::vector<double> OfGroup(const std::vector<double>& numbers, int32_t group) {
  const auto begin = numbers.begin() + group * kPerGroup;
  return {begin, begin + kPerGroup};
}

v1::GroupOutput Flat(int32_t group) {
  v1::GroupOutput output;
  output.set_group(group);
  output.set_tokens(33);
  for (double x : OfGroup(Numbers(2), group)) output.add_importance(x);
  for (double x : OfGroup(Numbers(5), group)) output.add_load(x);
  return output;
}

v1::GroupOutput Hierarchical(int32_t group) {
  const Spread importance = SpreadOf(OfGroup(Numbers(2), group));
  const Spread load = SpreadOf(OfGroup(Numbers(5), group));
  v1::GroupOutput output;
  output.set_group(group);
  output.set_tokens(33);
  output.mutable_importance_spread()->set_mean(importance.mean);
  output.mutable_importance_spread()->set_m2(importance.m2);
  output.mutable_load_spread()->set_mean(load.mean);
  output.mutable_load_spread()->set_m2(load.m2);
  return output;
}

template <typename Make>
BalanceTotals Joined(bool hierarchical, const Make& make) {
  std::vector<v1::GroupOutput> groups;
  for (int32_t g = 0; g < kGroups; ++g) groups.push_back(make(g));
  std::vector<const v1::GroupOutput*> pointers;
  for (const v1::GroupOutput& group : groups) pointers.push_back(&group);
  return JoinTotals(Layout(hierarchical), pointers);
}

TEST(BalanceTotalsTest, FlatGroupsKeepTheirNumbers) {
  const BalanceTotals totals = Joined(false, Flat);
  EXPECT_EQ(totals.tokens, 33u);
  EXPECT_EQ(totals.importance, Numbers(2));
  EXPECT_EQ(totals.load, Numbers(5));
  EXPECT_EQ(totals.moments.importance, SpreadOf(Numbers(2)).moments());
  EXPECT_EQ(totals.moments.load, SpreadOf(Numbers(5)).moments());
}

TEST(BalanceTotalsTest, HierarchicalGroupsJoinToTheMomentsOfTheWhole) {
  const BalanceTotals totals = Joined(true, Hierarchical);
  EXPECT_EQ(totals.tokens, 33u);
  EXPECT_TRUE(totals.importance.empty());
  const Moments importance = SpreadOf(Numbers(2)).moments();
  const Moments load = SpreadOf(Numbers(5)).moments();
  EXPECT_NEAR(totals.moments.importance.mean, importance.mean, 1e-14);
  EXPECT_NEAR(totals.moments.importance.variance, importance.variance, 1e-15);
  EXPECT_NEAR(totals.moments.load.mean, load.mean, 1e-14);
  EXPECT_NEAR(totals.moments.load.variance, load.variance, 1e-15);
}

TEST(BalanceTotalsTest, WhatIsMissingIsRefused) {
  EXPECT_TRUE(CheckTotals(Layout(false), Flat(1)).ok());
  EXPECT_TRUE(CheckTotals(Layout(true), Hierarchical(1)).ok());
  EXPECT_THAT(std::string(CheckTotals(Layout(false), Hierarchical(1)).message()),
              HasSubstr("0 values of importance and 0 of load instead of 4"));
  EXPECT_THAT(std::string(CheckTotals(Layout(true), Flat(1)).message()),
              HasSubstr("4 values of importance and 4 of load instead of 0"));
  v1::GroupOutput output = Hierarchical(1);
  output.clear_load_spread();
  EXPECT_THAT(std::string(CheckTotals(Layout(true), output).message()),
              HasSubstr("no spread of importance or load"));
}

TEST(BalanceTotalsTest, Sameness) {
  EXPECT_TRUE(SameTotals(Flat(1), Flat(1)));
  EXPECT_FALSE(SameTotals(Flat(1), Flat(2)));
  EXPECT_FALSE(SameTotals(Hierarchical(1), Hierarchical(2)));
  v1::GroupOutput output = Hierarchical(1);
  output.mutable_load_spread()->set_m2(std::numeric_limits<double>::quiet_NaN());
  EXPECT_FALSE(SameTotals(output, Hierarchical(1)));
  EXPECT_TRUE(SameTotals(output, output));
}

}  // namespace
}  // namespace moe
