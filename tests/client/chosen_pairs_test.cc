#include "client/chosen_pairs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Of 3 groups of 4 experts, 2 for each row; group 2 has the rows 1, 4 and 5 of its server's
// frame.
class ChosenPairsTest : public ::testing::Test {
 protected:
  ChosenPairsTest() {
    layout_.experts = 12;
    layout_.groups = 3;
    layout_.servers = 1;
    layout_.server_of_group = {0, 0, 0};
    layout_.hierarchical = true;
    layout_.k = 2;
    group_.group = 2;
    group_.row = {1, 4, 5};
    group_.token = {10, 40, 50};
  }

  absl::Status Append(const std::vector<uint32_t>& row,
                      const std::vector<uint32_t>& expert, const std::vector<float>& gate,
                      v1::Mode mode = v1::MODE_EVALUATE) {
    const auto bytes = [](const auto& values) {
      return std::string(reinterpret_cast<const char*>(values.data()),
                         values.size() * sizeof(values[0]));
    };
    v1::GroupRouting chosen;
    chosen.set_row(bytes(row));
    chosen.set_expert(bytes(expert));
    chosen.set_gate(bytes(gate));
    if (spoil_) spoil_(&chosen);
    return AppendChosen(layout_, group_, mode, chosen, &pairs_);
  }

  ExpertLayout layout_;
  RoutingPlan::Group group_;
  std::function<void(v1::GroupRouting*)> spoil_;
  ChosenPairs pairs_;
};

TEST_F(ChosenPairsTest, AreOfTheLayer) {
  ASSERT_TRUE(Append({1, 1, 4, 4, 5, 5}, {0, 3, 1, 2, 2, 3}, {1, 2, 3, 4, 5, 6}).ok());
  EXPECT_THAT(pairs_.token, ElementsAre(10, 10, 40, 40, 50, 50));
  EXPECT_THAT(pairs_.expert, ElementsAre(8, 11, 9, 10, 10, 11));
  EXPECT_THAT(pairs_.gate, ElementsAre(1, 2, 3, 4, 5, 6));
  // A group without rows.
  group_.row = {};
  ASSERT_TRUE(Append({}, {}, {}).ok());
  EXPECT_EQ(pairs_.token.size(), 6u);
}

TEST_F(ChosenPairsTest, HaveNoGatesInTraining) {
  const std::vector<uint32_t> row = {1, 1, 4, 4, 5, 5};
  const std::vector<uint32_t> expert = {0, 3, 1, 2, 2, 3};
  ASSERT_TRUE(Append(row, expert, {}, v1::MODE_TRAIN).ok());
  EXPECT_THAT(pairs_.expert, ElementsAre(8, 11, 9, 10, 10, 11));
  EXPECT_THAT(pairs_.gate, ElementsAre());
  EXPECT_FALSE(Append(row, expert, {1, 2, 3, 4, 5, 6}, v1::MODE_TRAIN).ok());
  EXPECT_FALSE(Append(row, expert, {}).ok());
}

TEST_F(ChosenPairsTest, WrongOnesAreRefused) {
  const auto message = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    return std::string(status.message());
  };
  const std::vector<uint32_t> row = {1, 1, 4, 4, 5, 5};
  const std::vector<uint32_t> expert = {0, 3, 1, 2, 2, 3};
  const std::vector<float> gate = {1, 2, 3, 4, 5, 6};
  EXPECT_THAT(message(Append(row, {0, 3, 1, 2, 2}, gate)),
              HasSubstr("6 rows, 5 experts and 6 gates are chosen instead of 6, 6 and 6: "
                        "2 for each of 3 rows"));
  EXPECT_THAT(message(Append(row, expert, {1, 2, 3, 4, 5})),
              HasSubstr("6 rows, 6 experts and 5 gates"));
  // A row without pairs, and one with a single pair.
  EXPECT_THAT(message(Append({1, 1, 5, 5}, {0, 3, 2, 3}, {1, 2, 5, 6})),
              HasSubstr("4 rows, 4 experts and 4 gates"));
  const char* const none = "is none of the group, or out of order";
  EXPECT_THAT(message(Append({1, 1, 1, 4, 5, 5}, {0, 1, 3, 2, 2, 3}, gate)),
              HasSubstr("the chosen pair 2 (row 1, expert 3) is none of the group"));
  EXPECT_THAT(message(Append({1, 1, 3, 3, 5, 5}, expert, gate)), HasSubstr(none));
  EXPECT_THAT(message(Append({1, 1, 4, 4, 6, 6}, expert, gate)), HasSubstr(none));
  EXPECT_THAT(message(Append({4, 4, 1, 1, 5, 5}, expert, gate)), HasSubstr(none));
  EXPECT_THAT(message(Append(row, {0, 4, 1, 2, 2, 3}, gate)), HasSubstr(none));
  EXPECT_THAT(message(Append(row, {0, 3, 2, 1, 2, 3}, gate)), HasSubstr(none));
  EXPECT_THAT(message(Append(row, {0, 3, 1, 1, 2, 3}, gate)), HasSubstr(none));
  // Bytes beyond the last element.
  spoil_ = [](v1::GroupRouting* chosen) { chosen->mutable_expert()->append("12"); };
  EXPECT_THAT(message(Append(row, expert, gate)),
              HasSubstr("expert has 26 bytes, which is no multiple of 4"));
  spoil_ = [](v1::GroupRouting* chosen) { chosen->mutable_row()->append("1"); };
  EXPECT_THAT(message(Append(row, expert, gate)), HasSubstr("row has 25 bytes"));
  spoil_ = [](v1::GroupRouting* chosen) { chosen->mutable_gate()->append("123"); };
  EXPECT_THAT(message(Append(row, expert, gate)), HasSubstr("gate has 27 bytes"));
}

}  // namespace
}  // namespace moe
