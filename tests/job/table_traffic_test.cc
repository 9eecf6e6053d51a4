#include "common/job/table_traffic.h"

#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "tests/job/job_of.h"
#include "worker/layers/candidates.h"

namespace moe {
namespace {

// Word by word.
double Distinct(int64_t begin, int64_t end, double draws, int64_t vocabulary) {
  double distinct = 0;
  for (int64_t w = begin; w < end; ++w) {
    const double p = std::log((w + 2.0) / (w + 1.0)) / std::log(vocabulary + 1.0);
    distinct += 1 - std::pow(1 - p, draws);
  }
  return distinct;
}

TEST(DistinctWordsTest, IsTheSumOverWords) {
  for (const int64_t vocabulary : {2, 100, 30000}) {
    for (const double draws : {0.0, 1.0, 50.0, 3000.0, 1e6}) {
      for (const auto& [begin, end] :
           {std::pair(int64_t{0}, vocabulary), std::pair(vocabulary / 3, vocabulary),
            std::pair(vocabulary / 2, vocabulary / 2)}) {
        const double expected = Distinct(begin, end, draws, vocabulary);
        EXPECT_NEAR(DistinctWords(begin, end, draws, vocabulary), expected,
                    2e-3 * expected)
            << vocabulary << " " << draws << " from " << begin;
      }
    }
  }
}

TEST(DistinctWordsTest, DrawsForIsItsInverse) {
  for (const double count : {0.0, 1.0, 17.5, 400.0, 999.0}) {
    const double draws = DrawsFor(count, 1000);
    EXPECT_NEAR(DistinctWords(0, 1000, draws, 1000), count, 1e-6 * count + 1e-9);
  }
}

// Against what workers draw.
TEST(DistinctWordsTest, CandidatesFollowTheLaw) {
  constexpr int64_t kVocabulary = 5000;
  constexpr int32_t kCandidates = 1000;
  double draws = 0;
  double low = 0;
  constexpr int kSteps = 50;
  for (int step = 0; step < kSteps; ++step) {
    const Candidates drawn = DrawCandidates(1, step, kVocabulary, kCandidates);
    draws += static_cast<double>(drawn.draws) / kSteps;
    for (const int32_t word : drawn.words) low += word < kVocabulary / 8 ? 1 : 0;
  }
  const double expected = DrawsFor(kCandidates, kVocabulary);
  EXPECT_NEAR(draws, expected, 0.02 * expected);
  low /= kSteps;
  EXPECT_NEAR(DistinctWords(0, kVocabulary / 8, expected, kVocabulary), low, 0.02 * low);
  // Far from even.
  EXPECT_GT(low, 2 * kCandidates / 8);
}

TEST(TableTrafficTest, ByHand) {
  const v1::Job job = JobOf(
      "d_model: 4 vocabulary: 100 tables { shards: 2 candidates: 6 } "
      "layers { lstm { hidden: 4 } }",
      "replicas: 3");
  const ModelPlan plan = MakeModelPlan(job);
  std::vector<ShardSpec> tables;
  for (const ShardSpec& shard : plan.shards) {
    if (shard.kind == ShardKind::kTable) tables.push_back(shard);
  }
  ASSERT_EQ(tables.size(), 4u);
  // 6 tokens of a replica: 2 lanes by 3 time steps.
  const double draws = DrawsFor(6, 100);
  const auto rows_of = [&](int64_t replicas) {
    const double words = 6.0 * static_cast<double>(replicas);
    return std::vector<double>{DistinctWords(0, 50, words, 100),
                               DistinctWords(50, 100, words, 100),
                               DistinctWords(0, 50, words + draws, 100),
                               DistinctWords(50, 100, words + draws, 100)};
  };
  const auto bytes_of = [&](int64_t replicas) {
    const std::vector<double> rows = rows_of(replicas);
    // Rows of 4 and of 5 floats, and their numbers.
    return static_cast<int64_t>(
        4 * std::round(5 * (rows[0] + rows[1]) + 6 * (rows[2] + rows[3])));
  };
  const TableTraffic traffic(job, /*training=*/true);
  for (size_t i = 0; i < tables.size(); ++i) {
    EXPECT_DOUBLE_EQ(traffic.Rows(tables[i], 2), rows_of(2)[i]);
  }
  EXPECT_EQ(traffic.Bytes(plan.shards, 2), bytes_of(2));
  // Replicas 0 and 1 are a node, 1 and 2 are two, and all three are the root.
  const auto pushed = [&](std::vector<uint32_t> owned) {
    return traffic.PushedBytes(plan.shards, owned);
  };
  EXPECT_EQ(pushed({0, 1}), bytes_of(2));
  EXPECT_EQ(pushed({1, 2}), 2 * bytes_of(1));
  EXPECT_EQ(pushed({0, 1, 2}), bytes_of(3));

  const TableTraffic evaluation(job, /*training=*/false);
  EXPECT_DOUBLE_EQ(evaluation.Rows(tables[0], 1), rows_of(1)[0]);
  EXPECT_EQ(evaluation.Rows(tables[2], 1), 0);
}

TEST(TableTrafficTest, WithoutTablesThereIsNone) {
  const v1::Job job =
      JobOf("d_model: 4 vocabulary: 100 layers { lstm { hidden: 4 } }", "replicas: 2");
  const ModelPlan plan = MakeModelPlan(job);
  const TableTraffic traffic(job, /*training=*/true);
  EXPECT_EQ(traffic.Bytes(plan.shards, 2), 0);
  EXPECT_EQ(traffic.PushedBytes(plan.shards, std::vector<uint32_t>{0, 1}), 0);
}

}  // namespace
}  // namespace moe
