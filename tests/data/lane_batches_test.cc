#include "worker/data/lane_batches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "worker/data/vocabulary.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Token i has the id i, so that an id tells its place.
std::vector<int32_t> Tokens(int64_t n) {
  std::vector<int32_t> tokens(n);
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

TEST(TrainingBatchesTest, SmallExample) {
  const auto tokens = Tokens(26);  // 25 positions, 4 lanes of 6
  const auto batches = TrainingBatches::Create(
      tokens, {.replicas = 2, .lanes = 2, .waves = 1, .unroll = 3});
  ASSERT_TRUE(batches.ok()) << batches.status();
  EXPECT_EQ(batches->steps_per_epoch(), 2);
  std::vector<int32_t> input(6), target(6);
  batches->Fill(0, 0, 0, input, target);
  EXPECT_THAT(input, ElementsAre(0, 6, 1, 7, 2, 8));
  EXPECT_THAT(target, ElementsAre(1, 7, 2, 8, 3, 9));
  batches->Fill(1, 1, 0, input, target);
  EXPECT_THAT(input, ElementsAre(15, 21, 16, 22, 17, 23));
  EXPECT_THAT(target, ElementsAre(16, 22, 17, 23, 18, 24));
}

struct Sizes {
  int64_t tokens;
  LaneShape shape;
};

class LaneBatchesTest : public ::testing::TestWithParam<Sizes> {};

TEST_P(LaneBatchesTest, TrainingUsesEachPositionOnceAndLanesAreContiguous) {
  const auto& [n, shape] = GetParam();
  const auto tokens = Tokens(n);
  const auto batches = TrainingBatches::Create(tokens, shape);
  if (n < shape.all_lanes() * shape.unroll + 1) {
    EXPECT_EQ(batches.status().code(), absl::StatusCode::kOutOfRange);
    return;
  }
  ASSERT_TRUE(batches.ok()) << batches.status();
  std::map<int32_t, int> seen;
  std::map<int64_t, int32_t> last;  // by global lane
  std::vector<int32_t> input(shape.rows()), target(shape.rows());
  for (int64_t step = 0; step < batches->steps_per_epoch(); ++step) {
    for (int32_t replica = 0; replica < shape.replicas; ++replica) {
      for (int32_t wave = 0; wave < shape.waves; ++wave) {
        batches->Fill(step, replica, wave, input, target);
        for (int32_t row = 0; row < shape.rows(); ++row) {
          EXPECT_EQ(target[row], input[row] + 1);
          ++seen[input[row]];
          const int32_t in_wave = row % shape.lanes_of_wave();
          const int64_t lane =
              replica * shape.lanes + wave * shape.lanes_of_wave() + in_wave;
          if (last.contains(lane)) {
            EXPECT_EQ(input[row], last[lane] + 1);
          }
          last[lane] = input[row];
        }
      }
    }
  }
  const int64_t per_lane = batches->steps_per_epoch() * shape.unroll;
  EXPECT_EQ(static_cast<int64_t>(seen.size()), per_lane * shape.all_lanes());
  for (const auto& [token, count] : seen) EXPECT_EQ(count, 1) << token;
  // No whole step was left out.
  EXPECT_GT((per_lane + shape.unroll) * shape.all_lanes(), n - 1);
}

TEST_P(LaneBatchesTest, EvaluationPredictsEveryTokenButTheFirstOnce) {
  const auto& [n, shape] = GetParam();
  const auto tokens = Tokens(n);
  const auto batches = EvaluationBatches::Create(tokens, shape);
  if (n < 2) {
    EXPECT_EQ(batches.status().code(), absl::StatusCode::kOutOfRange);
    return;
  }
  ASSERT_TRUE(batches.ok()) << batches.status();
  std::map<int32_t, int> seen;
  std::vector<int32_t> input(shape.rows()), target(shape.rows());
  for (int64_t batch = 0; batch < batches->batches(); ++batch) {
    bool any = false;
    for (int32_t replica = 0; replica < shape.replicas; ++replica) {
      for (int32_t wave = 0; wave < shape.waves; ++wave) {
        batches->Fill(batch, replica, wave, input, target);
        for (int32_t row = 0; row < shape.rows(); ++row) {
          if (target[row] < 0) {
            EXPECT_EQ(target[row], -1);
            EXPECT_EQ(input[row], Vocabulary::kEndOfSentence);
            continue;
          }
          EXPECT_EQ(target[row], input[row] + 1);
          EXPECT_EQ(tokens[batches->Position(batch, replica, wave, row)], input[row]);
          ++seen[target[row]];
          any = true;
        }
      }
    }
    EXPECT_TRUE(any) << "batch " << batch << " predicts nothing";
  }
  EXPECT_EQ(static_cast<int64_t>(seen.size()), n - 1);
  for (const auto& [token, count] : seen) EXPECT_EQ(count, 1) << token;
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, LaneBatchesTest,
    ::testing::Values(Sizes{0, {1, 1, 1, 1}}, Sizes{1, {1, 1, 1, 1}},
                      Sizes{2, {1, 1, 1, 1}}, Sizes{2, {2, 4, 2, 5}},
                      Sizes{26, {2, 2, 1, 3}}, Sizes{25, {2, 2, 2, 3}},
                      Sizes{24, {2, 2, 1, 3}}, Sizes{13, {1, 12, 4, 1}},
                      Sizes{1000, {3, 8, 4, 7}}, Sizes{1001, {1, 10, 5, 20}},
                      Sizes{997, {5, 2, 1, 35}}));

// Sentences of 1 to 30 words, 2 and more, with <eos> behind each.
std::vector<int32_t> Sentences(int64_t n) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; static_cast<int64_t>(tokens.size()) < n; ++i) {
    for (int64_t word = 0; word <= i * 7 % 30; ++word)
      tokens.push_back(static_cast<int32_t>(2 + tokens.size()));
    tokens.push_back(Vocabulary::kEndOfSentence);
  }
  return tokens;
}

// The first inputs of all lanes that have any.
std::vector<int32_t> FirstInputs(const EvaluationBatches& batches,
                                 const LaneShape& shape) {
  std::vector<int32_t> first, input(shape.rows()), target(shape.rows());
  for (int32_t replica = 0; replica < shape.replicas; ++replica) {
    for (int32_t wave = 0; wave < shape.waves; ++wave) {
      batches.Fill(0, replica, wave, input, target);
      for (int32_t lane = 0; lane < shape.lanes_of_wave(); ++lane) {
        if (target[lane] >= 0) first.push_back(input[lane]);
      }
    }
  }
  return first;
}

TEST(LaneBatchesTest, ShortLanesOfAnEvaluationBeginWithSentences) {
  const auto tokens = Sentences(2000);
  for (const LaneShape& shape :
       {LaneShape{2, 8, 2, 5}, LaneShape{4, 64, 2, 20}, LaneShape{3, 400, 4, 3}}) {
    const auto batches = EvaluationBatches::Create(tokens, shape);
    ASSERT_TRUE(batches.ok()) << batches.status();
    const std::vector<int32_t> first = FirstInputs(*batches, shape);
    EXPECT_GT(first.size(), 10);
    EXPECT_EQ(first[0], tokens[0]);
    for (size_t lane = 1; lane < first.size(); ++lane)
      EXPECT_EQ(first[lane], Vocabulary::kEndOfSentence) << lane;

    std::vector<int> predicted(tokens.size(), 0);
    std::vector<int32_t> input(shape.rows()), target(shape.rows());
    for (int64_t batch = 0; batch < batches->batches(); ++batch) {
      for (int32_t replica = 0; replica < shape.replicas; ++replica) {
        for (int32_t wave = 0; wave < shape.waves; ++wave) {
          batches->Fill(batch, replica, wave, input, target);
          for (int32_t row = 0; row < shape.rows(); ++row) {
            if (target[row] < 0) continue;
            const int64_t position = batches->Position(batch, replica, wave, row);
            EXPECT_EQ(input[row], tokens[position]);
            EXPECT_EQ(target[row], tokens[position + 1]);
            ++predicted[position + 1];
          }
        }
      }
    }
    EXPECT_EQ(predicted[0], 0);
    EXPECT_EQ(std::count(predicted.begin(), predicted.end(), 1),
              static_cast<int64_t>(tokens.size()) - 1);
  }
}

TEST(LaneBatchesTest, LongLanesOfAnEvaluationAreEquallyLong) {
  const auto tokens = Sentences(2000);
  const LaneShape shape = {1, 8, 2, 20};
  const auto batches = EvaluationBatches::Create(tokens, shape);
  ASSERT_TRUE(batches.ok()) << batches.status();
  const std::vector<int32_t> first = FirstInputs(*batches, shape);
  const int64_t lane_positions = (static_cast<int64_t>(tokens.size()) - 2) / 8 + 1;
  ASSERT_EQ(first.size(), 8);
  for (int64_t lane = 0; lane < 8; ++lane)
    EXPECT_EQ(first[lane], tokens[lane * lane_positions]);
}

TEST(LaneBatchesTest, TooShortNamesTheFigures) {
  const auto tokens = Tokens(2240);
  const absl::Status status =
      TrainingBatches::Create(tokens,
                              {.replicas = 4, .lanes = 16, .waves = 2, .unroll = 35})
          .status();
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("2,240 tokens"), HasSubstr("4 replicas x 16 lanes x 35"),
                    HasSubstr("2,241")));
}

// The wave and replica of a lane only say where its rows go.
TEST(LaneBatchesTest, WavesDoNotChangeLanes) {
  const auto tokens = Tokens(500);
  const auto one = TrainingBatches::Create(tokens, {1, 8, 1, 4});
  const auto four = TrainingBatches::Create(tokens, {1, 8, 4, 4});
  std::vector<int32_t> whole(32), part(8), target_whole(32), target_part(8);
  one->Fill(3, 0, 0, whole, target_whole);
  for (int wave = 0; wave < 4; ++wave) {
    four->Fill(3, 0, wave, part, target_part);
    for (int t = 0; t < 4; ++t) {
      for (int lane = 0; lane < 2; ++lane) {
        EXPECT_EQ(part[t * 2 + lane], whole[t * 8 + wave * 2 + lane]);
      }
    }
  }
}

}  // namespace
}  // namespace moe
