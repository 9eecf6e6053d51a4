#include "worker/layers/candidates.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "common/random/random.h"
#include "gtest/gtest.h"

namespace moe {
namespace {

TEST(CandidatesTest, AreDistinctWordsAndAFunctionOfSeedAndStep) {
  const Candidates drawn = DrawCandidates(3, 17, 1000, 200);
  EXPECT_EQ(drawn.words, DrawCandidates(3, 17, 1000, 200).words);
  EXPECT_NE(drawn.words, DrawCandidates(3, 18, 1000, 200).words);
  EXPECT_NE(drawn.words, DrawCandidates(4, 17, 1000, 200).words);
  const std::set<int32_t> distinct(drawn.words.begin(), drawn.words.end());
  EXPECT_EQ(distinct.size(), 200u);
  EXPECT_GE(*distinct.begin(), 0);
  EXPECT_LT(*distinct.rbegin(), 1000);
  EXPECT_GT(drawn.draws, 200);
}

TEST(CandidatesTest, MayBeTheWholeVocabulary) {
  const Candidates drawn = DrawCandidates(1, 0, 20, 20);
  EXPECT_EQ(std::set<int32_t>(drawn.words.begin(), drawn.words.end()).size(), 20u);
  // All are there for certain: nothing is corrected.
  for (int32_t word = 0; word < 20; ++word) EXPECT_EQ(drawn.LogExpectedCount(word), 0);
}

// Draw by draw: how many there are, repetitions included, and what follows for each word.
TEST(CandidatesTest, DrawsAreCountedOneByOne) {
  for (const auto& [vocabulary, count] :
       {std::pair<int64_t, int32_t>{100, 20}, {1000, 200}, {1000, 1}, {50, 49}}) {
    for (uint64_t step = 0; step < 20; ++step) {
      const Candidates drawn = DrawCandidates(7, step, vocabulary, count);
      const RandomKey key = MakeKey(7, Purpose::kCandidate, {.step = step});
      const int64_t row = std::max(count, 64);
      std::set<int32_t> distinct;
      int64_t draws = 0;
      while (distinct.size() < static_cast<size_t>(count)) {
        const double uniform = (Bits(key, draws / row, draws % row) + 0.5) / 4294967296.0;
        ++draws;
        distinct.insert(static_cast<int32_t>(
            std::pow(static_cast<double>(vocabulary) + 1, uniform) - 1));
      }
      EXPECT_EQ(drawn.draws, draws);
      EXPECT_EQ(std::set<int32_t>(drawn.words.begin(), drawn.words.end()), distinct);
      for (int32_t word = 0; word < vocabulary; ++word) {
        const double p = std::log((word + 2.0) / (word + 1.0)) /
                         std::log(static_cast<double>(vocabulary) + 1);
        const double expected = std::log(1 - std::pow(1 - p, static_cast<double>(draws)));
        EXPECT_NEAR(drawn.LogExpectedCount(word), expected, 1e-6 * (1 - expected));
      }
    }
  }
}

// How often a word is drawn, over many steps, against its expected count.
TEST(CandidatesTest, ExpectedCountIsTheFrequency) {
  constexpr int kSteps = 4000;
  constexpr int64_t kVocabulary = 100;
  std::vector<double> found(kVocabulary);
  std::vector<double> expected(kVocabulary);
  for (int step = 0; step < kSteps; ++step) {
    const Candidates drawn = DrawCandidates(1, step, kVocabulary, 20);
    for (int32_t word : drawn.words) ++found[word];
    for (int32_t w = 0; w < kVocabulary; ++w) {
      expected[w] += std::exp(drawn.LogExpectedCount(w));
    }
  }
  double sum = 0;
  for (int64_t w = 0; w < kVocabulary; ++w) {
    const double p = expected[w] / kSteps;
    // Five standard deviations of a count, and what the number of draws being random does.
    EXPECT_NEAR(found[w] / kSteps, p, 5 * std::sqrt(p * (1 - p) / kSteps) + 0.01 * p)
        << w;
    sum += p;
  }
  EXPECT_NEAR(sum, 20, 0.5);
  EXPECT_GT(expected[0], 5 * expected[kVocabulary - 1]);
}

}  // namespace
}  // namespace moe
