#include "client/chosen_pairs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Of 3 groups of 4 experts; group 2 has the rows 1, 4 and 5 of its server's frame.
class ChosenPairsTest : public ::testing::Test {
 protected:
  ChosenPairsTest() {
    layout_.experts = 12;
    layout_.groups = 3;
    layout_.servers = 1;
    layout_.server_of_group = {0, 0, 0};
    layout_.hierarchical = true;
    group_.group = 2;
    group_.row = {1, 4, 5};
    group_.token = {10, 40, 50};
  }

  absl::Status Append(const std::vector<uint32_t>& row,
                      const std::vector<uint32_t>& expert,
                      const std::vector<float>& gate) {
    const auto bytes = [](const auto& values) {
      return std::string(reinterpret_cast<const char*>(values.data()),
                         values.size() * sizeof(values[0]));
    };
    v1::GroupRouting chosen;
    chosen.set_row(bytes(row));
    chosen.set_expert(bytes(expert));
    chosen.set_gate(bytes(gate));
    return AppendChosen(layout_, group_, chosen, &pairs_);
  }

  ExpertLayout layout_;
  RoutingPlan::Group group_;
  ChosenPairs pairs_;
};

TEST_F(ChosenPairsTest, AreOfTheLayer) {
  ASSERT_TRUE(Append({1, 1, 4, 4, 5, 5}, {0, 3, 1, 2, 2, 3}, {1, 2, 3, 4, 5, 6}).ok());
  EXPECT_THAT(pairs_.token, ElementsAre(10, 10, 40, 40, 50, 50));
  EXPECT_THAT(pairs_.expert, ElementsAre(8, 11, 9, 10, 10, 11));
  EXPECT_THAT(pairs_.gate, ElementsAre(1, 2, 3, 4, 5, 6));
  ASSERT_TRUE(Append({}, {}, {}).ok());
  EXPECT_EQ(pairs_.token.size(), 6u);
}

TEST_F(ChosenPairsTest, WrongOnesAreRefused) {
  const auto message = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    return std::string(status.message());
  };
  EXPECT_THAT(message(Append({1, 4}, {0}, {1, 2})),
              HasSubstr("2 rows, 1 experts and 2 gates"));
  EXPECT_THAT(message(Append({1, 4}, {0, 1}, {1})),
              HasSubstr("2 rows, 2 experts and 1 gates"));
  const char* const none = "is none of the group, or out of order";
  EXPECT_THAT(message(Append({1, 3}, {0, 1}, {1, 2})), HasSubstr(none));
  EXPECT_THAT(message(Append({1, 6}, {0, 1}, {1, 2})),
              HasSubstr("the chosen pair 1 (row 6, expert 1) is none of the group"));
  EXPECT_THAT(message(Append({1, 4}, {0, 4}, {1, 2})), HasSubstr(none));
  EXPECT_THAT(message(Append({4, 1}, {0, 1}, {1, 2})), HasSubstr(none));
  EXPECT_THAT(message(Append({4, 4}, {1, 1}, {1, 2})), HasSubstr(none));
}

}  // namespace
}  // namespace moe
