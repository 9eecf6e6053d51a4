#include "server/table_frames.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "common/tensor/bytes.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const TableShapes kTables = {{"softmax/rows1", {.rows = 10, .columns = 3}}};

template <typename T>
std::string Bytes(const std::vector<T>& values) {
  std::string bytes;
  PutArray(values, &bytes);
  return bytes;
}

v1::RowSet RowsOf(const std::string& shard, const std::vector<uint32_t>& row) {
  v1::RowSet rows;
  rows.set_shard(shard);
  rows.set_row(Bytes(row));
  return rows;
}

std::string Refusal(const absl::Status& status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(TableFramesTest, RowsAreThoseOfAHostedShardAndAscend) {
  EXPECT_THAT(*DecodeRowSet(kTables, RowsOf("softmax/rows1", {0, 4, 9})),
              ElementsAre(0, 4, 9));
  EXPECT_TRUE(DecodeRowSet(kTables, RowsOf("softmax/rows1", {}))->empty());
  const auto refusal = [](const v1::RowSet& rows) {
    return Refusal(DecodeRowSet(kTables, rows).status());
  };
  EXPECT_THAT(refusal(RowsOf("softmax/rows0", {1})), HasSubstr("softmax/rows0"));
  EXPECT_THAT(refusal(RowsOf("softmax/rows1", {10})),
              HasSubstr("row 10 is out of range"));
  EXPECT_THAT(refusal(RowsOf("softmax/rows1", {4, 4})), HasSubstr("must ascend"));
  EXPECT_THAT(refusal(RowsOf("softmax/rows1", {5, 4})), HasSubstr("must ascend"));
  v1::RowSet odd = RowsOf("softmax/rows1", {5});
  odd.mutable_row()->push_back('x');
  EXPECT_THAT(refusal(odd), HasSubstr("no multiple of 4"));
}

TEST(TableFramesTest, GradientsHaveAllColumnsOfEachRowAndAreFinite) {
  v1::RowGradientNode node;
  node.set_shard("softmax/rows1");
  node.set_level(1);
  node.set_index(2);
  node.set_row(Bytes<uint32_t>({3, 7}));
  node.set_gradient(Bytes<float>({1, 2, 3, 4, 5, 6}));
  const auto decoded = DecodeRowGradient(kTables, node);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->node, (TreeNode{1, 2}));
  EXPECT_THAT(decoded->sum.row, ElementsAre(3, 7));
  EXPECT_THAT(decoded->sum.value, ElementsAre(1, 2, 3, 4, 5, 6));

  const auto refusal = [](const v1::RowGradientNode& spoilt) {
    return Refusal(DecodeRowGradient(kTables, spoilt).status());
  };
  v1::RowGradientNode spoilt = node;
  spoilt.set_gradient(Bytes<float>({1, 2, 3, 4, 5}));
  EXPECT_THAT(refusal(spoilt), HasSubstr("5 values instead of 6 (2 rows of 3)"));
  spoilt.set_gradient(Bytes<float>({1, 2, 3, 4, 5, std::nanf("")}));
  EXPECT_THAT(refusal(spoilt), HasSubstr("NaN or an infinity"));
  spoilt.set_gradient(
      Bytes<float>({1, 2, 3, 4, 5, std::numeric_limits<float>::infinity()}));
  EXPECT_THAT(refusal(spoilt), HasSubstr("NaN or an infinity"));
  spoilt = node;
  spoilt.set_row(Bytes<uint32_t>({7, 3}));
  EXPECT_THAT(refusal(spoilt), HasSubstr("must ascend"));
  spoilt.set_row(Bytes<uint32_t>({3, 10}));
  EXPECT_THAT(refusal(spoilt), HasSubstr("out of range"));
  spoilt = node;
  spoilt.set_shard("embedding/rows0");
  EXPECT_THAT(refusal(spoilt), HasSubstr("embedding/rows0"));
}

TEST(TableFramesTest, ScoresHaveAFiniteRowForEachWord) {
  std::string error;
  const std::unique_ptr<Backend> backend = MakeCpuBackend(1, &error);
  ASSERT_NE(backend, nullptr) << error;
  const auto decode = [&](const v1::ScoreFrame& frame) {
    return DecodeScore(*backend, /*width=*/2, /*vocabulary=*/10, frame);
  };
  v1::ScoreFrame frame;
  frame.set_replica(3);
  frame.set_target(Bytes<int32_t>({0, 9}));
  frame.set_x(Bytes<float>({1, 2, 3, 4}));
  const auto decoded = decode(frame);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->replica, 3u);
  EXPECT_THAT(decoded->target, ElementsAre(0, 9));

  v1::ScoreFrame spoilt = frame;
  spoilt.set_x(Bytes<float>({1, 2, 3}));
  EXPECT_THAT(Refusal(decode(spoilt).status()), HasSubstr("12 bytes instead of 16"));
  spoilt.set_x(Bytes<float>({1, 2, 3, std::nanf("")}));
  EXPECT_THAT(Refusal(decode(spoilt).status()), HasSubstr("NaN or an infinity"));
  for (const int32_t word : {-1, 10}) {
    spoilt = frame;
    spoilt.set_target(Bytes<int32_t>({0, word}));
    EXPECT_THAT(Refusal(decode(spoilt).status()), HasSubstr("no word of a vocabulary"));
  }
}

}  // namespace
}  // namespace moe
