#include "worker/trainer/table_pass.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "tests/worker/local_tables.h"
#include "tests/worker/values.h"
#include "worker/models/word_layers.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using testing::LocalTables;
using testing::MakeTensor;
using testing::RandomValues;
using testing::TestBackend;
using testing::Values;

constexpr int64_t kVocabulary = 23;
constexpr int64_t kWidth = 5;
constexpr int32_t kCandidates = 6;
constexpr int kReplicas = 3;
constexpr int kWaves = 2;
constexpr int64_t kTokens = 7;
constexpr uint64_t kSeed = 9;
constexpr uint64_t kStep = 4;
constexpr uint64_t kVersion = 17;

using WordSet = std::set<int32_t>;
using RowSums = std::map<int32_t, std::vector<double>>;  // by word

class TablePassTest : public ::testing::Test {
 protected:
  TablePassTest() {
    tables_.Set(Table::kEmbedding, embedding_);
    tables_.Set(Table::kSoftmax, softmax_);
    for (int i = 0; i < kReplicas * kWaves; ++i) {
      MicroBatch batch;
      for (int64_t t = 0; t < kTokens; ++t) {
        // Words repeat within a wave, over waves and over replicas; not all are named.
        batch.input.push_back(static_cast<int32_t>((3 * i + t * t) % 11));
        batch.target.push_back(static_cast<int32_t>((5 * i + 2 * t * t) % 19));
      }
      batch.target[i % kTokens] = -1;
      batches_.push_back(batch);
    }
    drawn_ = DrawCandidates(kSeed, kStep, kVocabulary, kCandidates);
  }

  static v1::Job Job() {
    v1::Job job;
    job.set_seed(kSeed);
    v1::Model& model = *job.mutable_model();
    model.set_d_model(kWidth);
    model.set_vocabulary(kVocabulary);
    model.mutable_tables()->set_candidates(kCandidates);
    job.mutable_training()->set_replicas(kReplicas);
    job.mutable_training()->set_waves(kWaves);
    return job;
  }

  std::span<const StepTables> Pull(PassMode mode) {
    const auto pulled = pass_.Pull(kVersion, mode, kStep, batches_);
    EXPECT_TRUE(pulled.ok()) << pulled.status();
    return *pulled;
  }
  // Of the waves of replicas [begin, end).
  WordSet Inputs(int begin, int end) const {
    WordSet words;
    for (int i = begin * kWaves; i < end * kWaves; ++i) {
      words.insert(batches_[i].input.begin(), batches_[i].input.end());
    }
    return words;
  }
  WordSet Targets(int begin, int end) const {
    WordSet words;
    for (int i = begin * kWaves; i < end * kWaves; ++i) {
      words.insert(batches_[i].target.begin(), batches_[i].target.end());
    }
    words.erase(-1);
    return words;
  }
  // ln of the probability that the draws have the word.
  double LogQ(int32_t word) const {
    const double p = std::log((word + 2.0) / (word + 1.0)) / std::log(kVocabulary + 1.0);
    return std::log(1 - std::pow(1 - p, static_cast<double>(drawn_.draws)));
  }
  void ExpectRows(const TableRows& rows, const std::vector<float>& table,
                  bool corrected) {
    const int64_t columns = corrected ? kWidth + 1 : kWidth;
    const std::vector<float> w = Values(rows.w);
    std::vector<float> b(rows.b.size());
    rows.b.Download(b);
    ASSERT_EQ(rows.w.rows(), static_cast<int64_t>(rows.words.size()));
    ASSERT_EQ(b.size(), corrected ? rows.words.size() : 0);
    for (size_t r = 0; r < rows.words.size(); ++r) {
      const int32_t word = rows.words[r];
      for (int64_t c = 0; c < kWidth; ++c) {
        EXPECT_EQ(w[r * kWidth + c], table[word * columns + c]) << word;
      }
      if (corrected) {
        EXPECT_NEAR(b[r], table[word * columns + kWidth] - LogQ(word), 1e-5) << word;
      }
    }
  }

  // The rows' gradients of one replica: those of scale times the sum of -ln p(target) of inputs
  // x of its waves, in double. losses: of each wave.
  RowSums SoftmaxReference(int replica, const std::vector<std::vector<float>>& x,
                           float scale, std::vector<double>* losses) const {
    RowSums sums;
    for (const int32_t word : drawn_.words) sums[word].resize(kWidth + 1);
    for (int w = 0; w < kWaves; ++w) {
      double& loss = losses->emplace_back();
      for (int64_t t = 0; t < kTokens; ++t) {
        const int32_t target = batches_[replica * kWaves + w].target[t];
        if (target < 0) continue;
        WordSet words(drawn_.words.begin(), drawn_.words.end());
        words.insert(target);
        std::map<int32_t, double> factor;
        double sum = 0;
        for (const int32_t word : words) {
          const float* row = softmax_.data() + word * (kWidth + 1);
          double logit = row[kWidth] - LogQ(word);
          for (int64_t c = 0; c < kWidth; ++c)
            logit += double{row[c]} * x[w][t * kWidth + c];
          sum += factor[word] = std::exp(logit);
        }
        loss += std::log(sum / factor[target]);
        for (const int32_t word : words) {
          const double gradient = scale * (factor[word] / sum - (word == target));
          std::vector<double>& row = sums[word];
          row.resize(kWidth + 1);
          for (int64_t c = 0; c < kWidth; ++c) row[c] += gradient * x[w][t * kWidth + c];
          row[kWidth] += gradient;
        }
      }
    }
    return sums;
  }

  const v1::Job job_ = Job();
  const std::vector<float> embedding_ = RandomValues(1, kVocabulary* kWidth);
  const std::vector<float> softmax_ = RandomValues(2, kVocabulary*(kWidth + 1));
  LocalTables tables_{kVocabulary, kWidth};
  ActivityClock clock_;
  TablePass pass_{TestBackend(), job_, tables_, clock_};
  std::vector<MicroBatch> batches_;
  Candidates drawn_;
};

TEST_F(TablePassTest, TrainingPullsWhatTheWorkersReplicasNameOnce) {
  const std::span<const StepTables> pulled = Pull(PassMode::kTrain);
  const WordSet inputs = Inputs(0, kReplicas);
  WordSet outputs = Targets(0, kReplicas);
  outputs.insert(drawn_.words.begin(), drawn_.words.end());
  EXPECT_LT(inputs.size(), static_cast<size_t>(kVocabulary));
  EXPECT_LT(outputs.size(), static_cast<size_t>(kVocabulary));
  EXPECT_THAT(
      tables_.TakePulls(),
      ElementsAre(
          LocalTables::Pull{kVersion, Table::kEmbedding, {inputs.begin(), inputs.end()}},
          LocalTables::Pull{
              kVersion, Table::kSoftmax, {outputs.begin(), outputs.end()}}));

  ASSERT_EQ(pulled.size(), static_cast<size_t>(kReplicas));
  for (int r = 0; r < kReplicas; ++r) {
    EXPECT_THAT(pulled[r].input.words, ElementsAreArray(Inputs(r, r + 1)));
    EXPECT_THAT(pulled[r].target.words, ElementsAreArray(Targets(r, r + 1)));
    ExpectRows(pulled[r].input, embedding_, /*corrected=*/false);
    ExpectRows(pulled[r].target, softmax_, /*corrected=*/true);
    // One set for all.
    EXPECT_EQ(pulled[r].candidates, pulled[0].candidates);
  }
  const StepCandidates& candidates = *pulled[0].candidates;
  EXPECT_EQ(candidates.candidates.words, drawn_.words);
  EXPECT_EQ(candidates.candidates.draws, drawn_.draws);
  EXPECT_EQ(candidates.rows.words, drawn_.words);
  ExpectRows(candidates.rows, softmax_, /*corrected=*/true);
  EXPECT_EQ(candidates.place.size(), drawn_.words.size());
  for (size_t c = 0; c < drawn_.words.size(); ++c) {
    EXPECT_EQ(candidates.place.at(drawn_.words[c]), static_cast<int32_t>(c));
  }
}

TEST_F(TablePassTest, EvaluationPullsInputWordsAlone) {
  const std::span<const StepTables> pulled = Pull(PassMode::kEvaluate);
  const WordSet inputs = Inputs(0, kReplicas);
  EXPECT_THAT(tables_.TakePulls(),
              ElementsAre(LocalTables::Pull{kVersion,
                                            Table::kEmbedding,
                                            {inputs.begin(), inputs.end()},
                                            PullFor::kEvaluation}));
  for (int r = 0; r < kReplicas; ++r) {
    ExpectRows(pulled[r].input, embedding_, /*corrected=*/false);
    EXPECT_EQ(pulled[r].candidates, nullptr);
    EXPECT_TRUE(pulled[r].target.words.empty());
  }
}

// Bit for bit: each row's tokens in order, then the waves.
TEST_F(TablePassTest, EmbeddingGradientsAddInTokenOrder) {
  const std::span<const StepTables> pulled = Pull(PassMode::kTrain);
  for (int r = 0; r < kReplicas; ++r) {
    TableWordLayers words(TestBackend(), kWidth, /*dropout=*/0, kWaves);
    const Pass pass = {.step = kStep, .replica = static_cast<uint32_t>(r)};
    words.BeginStep(pass, &pulled[r]);
    std::map<int32_t, std::vector<float>> expected;
    // All forward passes come first.
    for (int w = 0; w < kWaves; ++w) {
      const std::vector<int32_t>& input = batches_[r * kWaves + w].input;
      const Tensor y(TestBackend(), kTokens, kWidth);
      words.Embed(pass, w, input, y.view());
      for (int64_t t = 0; t < kTokens; ++t) {
        for (int64_t c = 0; c < kWidth; ++c) {
          EXPECT_EQ(Values(y)[t * kWidth + c], embedding_[input[t] * kWidth + c]);
        }
      }
    }
    for (int w = 0; w < kWaves; ++w) {
      const std::vector<float> dy = RandomValues(30 + r * kWaves + w, kTokens * kWidth);
      const Tensor gradient = MakeTensor(kTokens, kWidth, dy);
      words.EmbedBackward(pass, w, gradient.view());
      for (int64_t t = 0; t < kTokens; ++t) {
        std::vector<float>& row = expected[batches_[r * kWaves + w].input[t]];
        row.resize(kWidth);
        for (int64_t c = 0; c < kWidth; ++c) row[c] += dy[t * kWidth + c];
      }
    }
    const SparseRows gradients = words.EmbeddingGradients();
    ASSERT_EQ(gradients.row.size(), expected.size());
    size_t i = 0;
    for (const auto& [word, row] : expected) {
      EXPECT_EQ(gradients.row[i], static_cast<uint32_t>(word));
      EXPECT_THAT(std::vector<float>(gradients.value.begin() + i * kWidth,
                                     gradients.value.begin() + (i + 1) * kWidth),
                  ElementsAreArray(row))
          << word;
      ++i;
    }
  }
}

TEST_F(TablePassTest, SoftmaxGradientsOfCandidatesAndTargets) {
  constexpr float kScale = 0.25;
  const std::span<const StepTables> pulled = Pull(PassMode::kTrain);
  int both = 0;
  for (int r = 0; r < kReplicas; ++r) {
    TableWordLayers words(TestBackend(), kWidth, /*dropout=*/0, kWaves);
    words.BeginStep({.step = kStep, .replica = static_cast<uint32_t>(r)}, &pulled[r]);
    std::vector<std::vector<float>> x;
    std::vector<double> losses;
    for (int w = 0; w < kWaves; ++w) {
      x.push_back(RandomValues(40 + r * kWaves + w, kTokens * kWidth, 2));
      const Tensor dx(TestBackend(), kTokens, kWidth);
      losses.push_back(words.Train(MakeTensor(kTokens, kWidth, x[w]).view(),
                                   batches_[r * kWaves + w].target, kScale, dx.view()));
    }
    std::vector<double> expected_losses;
    const RowSums expected = SoftmaxReference(r, x, kScale, &expected_losses);
    for (int w = 0; w < kWaves; ++w) EXPECT_NEAR(losses[w], expected_losses[w], 1e-5);

    const SparseRows gradients = words.SoftmaxGradients();
    ASSERT_EQ(gradients.row.size(), expected.size());
    ASSERT_EQ(gradients.value.size(), expected.size() * (kWidth + 1));
    size_t i = 0;
    for (const auto& [word, row] : expected) {
      EXPECT_EQ(gradients.row[i], static_cast<uint32_t>(word));
      for (int64_t c = 0; c <= kWidth; ++c) {
        EXPECT_NEAR(gradients.value[i * (kWidth + 1) + c], row[c], 1e-6)
            << word << "[" << c << "]";
      }
      both +=
          pulled[r].candidates->place.contains(word) && Targets(r, r + 1).contains(word);
      ++i;
    }
  }
  EXPECT_GT(both, 0);
}

}  // namespace
}  // namespace moe
