#include "worker/layers/candidates.h"

#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

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
