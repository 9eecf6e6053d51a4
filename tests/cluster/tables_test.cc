// Embedding and softmax as tables (job.proto, Tables).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/io/safetensors.h"
#include "common/job/job_file.h"
#include "common/job/model_plan.h"
#include "tests/cluster/local_cluster.h"
#include "worker/data/lane_batches.h"
#include "worker/data/prepare_text.h"
#include "worker/data/token_dataset.h"
#include "worker/layers/candidates.h"

namespace moe {
namespace {

std::string JobText(const std::string& tables, const std::string& optimizer, int steps) {
  return absl::StrCat(R"(
    name: "tables" seed: 10
    model {
      d_model: 8 embedding_dropout: 0.1 )",
                      tables, R"(
      layers { lstm { hidden: 8 } dropout: 0.1 residual: true }
      layers {
        moe { experts: 4 k: 2 hidden: 8 groups: 2 gating: GATING_NOISY_TOP_K w_load: 0.1 }
        residual: true
      }
    }
    optimizer { )",
                      optimizer, R"( }
    training { replicas: 3 waves: 2 lanes: 4 unroll: 5 steps: )",
                      steps, R"( }
    checkpointing { every_steps: 3 })");
}

constexpr char kTables[] = "tables { shards: 3 candidates: 20 }";
constexpr char kAdam[] = "adam {} schedule { base_rate: 0.02 }";
constexpr char kRowAdam[] =
    "adam {} tables { beta1: 0 second_moment: SECOND_MOMENT_PER_ROW } "
    "schedule { base_rate: 0.02 }";
constexpr char kClippedAdam[] = "adam {} schedule { base_rate: 0.02 } clip_norm: 0.05";

class TablesTest : public testing::Test {
 protected:
  static std::string Data() { return absl::StrCat(testing::TempDir(), "/data"); }

  static void SetUpTestSuite() {
    std::ofstream(absl::StrCat(testing::TempDir(), "/text.txt")) << SyntheticText(1, 150);
    PrepareOptions options;
    options.text = absl::StrCat(testing::TempDir(), "/text.txt");
    options.out = Data();
    options.validation_fraction = 0.1;
    options.test_fraction = 0.1;
    std::ostringstream progress;
    const auto prepared = PrepareText(options, progress);
    ASSERT_TRUE(prepared.ok()) << prepared.status();
  }

  LocalClusterResult Run(const std::string& job, int servers, int workers, int threads,
                         const std::string& folder = "run", bool resume = false) {
    LocalClusterOptions options;
    const auto parsed = ParseJob(job, "job");
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    options.job = *parsed;
    options.servers = servers;
    options.workers = workers;
    options.threads = threads;
    options.data = Data();
    options.folder = absl::StrCat(testing::TempDir(), "/", folder);
    options.resume = resume;
    if (!resume) std::filesystem::remove_all(options.folder);
    const LocalClusterResult result = RunLocalCluster(options);
    EXPECT_TRUE(result.status.ok()) << result.status;
    return result;
  }

  void ExpectResumed(const std::string& optimizer) {
    const std::string whole = JobText(kTables, optimizer, 6);
    const std::string digest = Run(whole, 1, 1, 1).digest;
    EXPECT_NE(Run(JobText(kTables, optimizer, 3), 2, 3, 1, "halves").digest, digest);
    EXPECT_EQ(Run(whole, 3, 2, 2, "halves", /*resume=*/true).digest, digest);
  }
};

TEST_F(TablesTest, AnyShapeGivesTheSameBits) {
  for (const char* optimizer : {kAdam, kRowAdam, kClippedAdam}) {
    const std::string job = JobText(kTables, optimizer, 6);
    const LocalClusterResult one = Run(job, 1, 1, 1);
    for (const auto& [servers, workers, threads] :
         {std::tuple(1, 1, 2), std::tuple(2, 2, 1), std::tuple(4, 3, 2)}) {
      const LocalClusterResult other = Run(job, servers, workers, threads);
      EXPECT_EQ(other.digest, one.digest) << servers << " " << workers;
      EXPECT_EQ(other.test_perplexity, one.test_perplexity) << servers << " " << workers;
    }
  }
}

TEST_F(TablesTest, ResumedOnAnotherShape) {
  for (const char* optimizer : {kClippedAdam, kRowAdam}) ExpectResumed(optimizer);
}

// With one shard a table starts with the values of the dense parameter, so that before any training
// the two ways to evaluate, on the worker and on the servers, must agree.
TEST_F(TablesTest, EvaluationIsTheExactSoftmax) {
  const auto perplexity = [&](const std::string& tables, int servers) {
    std::string job = JobText(tables, "sgd {} schedule { base_rate: 1e-30 }", 1);
    // All experts: no choice hangs on the step that is taken.
    job.replace(job.find("k: 2"), 4, "k: 4");
    return Run(job, servers, servers, 1).test_perplexity;
  };
  const double dense = perplexity("", 1);
  EXPECT_NEAR(perplexity("tables { shards: 1 candidates: 20 }", 2), dense, 1e-5 * dense);
}

// What the text and the draws say about the steps of a job.
class NamedRows {
 public:
  explicit NamedRows(const v1::Job& job, const TokenDataset& data)
      : job_(job),
        data_(data),
        batches_(*TrainingBatches::Create(data.tokens(TextSplit::kTrain), Shape())) {}

  LaneShape Shape() const {
    const v1::Training& training = job_.training();
    LaneShape shape;
    shape.replicas = training.replicas();
    shape.lanes = training.lanes();
    shape.waves = training.waves();
    shape.unroll = training.unroll();
    return shape;
  }

  // Words that a step of these replicas names; of the softmax the candidates, too.
  std::set<int32_t> OfStep(const std::string& table, int step,
                           const std::vector<uint32_t>& replicas) const {
    std::set<int32_t> words =
        Of(table, replicas, [&](auto... args) { batches_.Fill(step, args...); });
    if (table == "embedding") return words;
    const Candidates drawn = DrawCandidates(job_.seed(), step, job_.model().vocabulary(),
                                            job_.model().tables().candidates());
    words.insert(drawn.words.begin(), drawn.words.end());
    return words;
  }
  // Input words of an evaluation, by batch.
  std::vector<std::set<int32_t>> OfEvaluation(
      TextSplit split, const std::vector<uint32_t>& replicas) const {
    const auto batches = EvaluationBatches::Create(data_.tokens(split), Shape());
    EXPECT_TRUE(batches.ok());
    std::vector<std::set<int32_t>> words;
    for (int64_t b = 0; b < batches->batches(); ++b) {
      words.push_back(
          Of("embedding", replicas, [&](auto... args) { batches->Fill(b, args...); }));
    }
    return words;
  }

 private:
  template <typename Fill>
  std::set<int32_t> Of(const std::string& table, const std::vector<uint32_t>& replicas,
                       const Fill& fill) const {
    const LaneShape shape = Shape();
    std::set<int32_t> words;
    for (const uint32_t r : replicas) {
      for (int32_t w = 0; w < shape.waves; ++w) {
        std::vector<int32_t> input(shape.rows()), target(shape.rows());
        fill(static_cast<int32_t>(r), w, std::span<int32_t>(input),
             std::span<int32_t>(target));
        const std::vector<int32_t>& named = table == "embedding" ? input : target;
        words.insert(named.begin(), named.end());
      }
    }
    return words;
  }

  const v1::Job job_;
  const TokenDataset& data_;
  const TrainingBatches batches_;
};

constexpr char kTableNames[][10] = {"embedding", "softmax"};

// Every row has been updated once for each step whose words or candidates name it, and no more.
TEST_F(TablesTest, AStepTouchesTheRowsOfItsWordsAndCandidates) {
  constexpr int kSteps = 6;
  const std::string text = JobText(kTables, kAdam, kSteps);
  Run(text, 2, 2, 1);

  const auto data = TokenDataset::Open(Data());
  ASSERT_TRUE(data.ok()) << data.status();
  v1::Job job = *ParseJob(text, "job");
  job.mutable_model()->set_vocabulary(data->vocabulary_size());
  const NamedRows named(job, *data);
  for (const std::string table : kTableNames) {
    std::vector<int64_t> counts(data->vocabulary_size());
    for (int step = 0; step < kSteps; ++step) {
      for (const int32_t word : named.OfStep(table, step, {0, 1, 2})) ++counts[word];
    }
    std::vector<int64_t> found;
    for (int shard = 0; shard < 3; ++shard) {
      const auto file = SafetensorsFile::Open(
          absl::StrCat(testing::TempDir(), "/run/checkpoints/step-00000006/", table,
                       "-rows", shard, ".safetensors"));
      ASSERT_TRUE(file.ok()) << file.status();
      const auto entry = (*file)->Find(absl::StrCat(table, "/rows", shard, "#count"));
      ASSERT_TRUE(entry.ok()) << entry.status();
      const size_t begin = found.size();
      found.resize(begin + entry->bytes / sizeof(int64_t));
      const auto bytes = (*file)->Read(*entry);
      ASSERT_TRUE(bytes.ok()) << bytes.status();
      std::memcpy(found.data() + begin, bytes->data(), entry->bytes);
    }
    EXPECT_EQ(found, counts) << table;
    EXPECT_TRUE(std::find(counts.begin(), counts.end(), 0) != counts.end()) << table;
  }
}

// Each worker pulls what its own replicas name, and the candidates once; a row is pushed once
// whoever names it; and what is pulled for an evaluation counts for itself.
TEST_F(TablesTest, StatusCountsTheRowsThatTheTextNames) {
  constexpr int kSteps = 6;
  const std::string text = JobText(kTables, kAdam, kSteps);
  const auto data = TokenDataset::Open(Data());
  ASSERT_TRUE(data.ok()) << data.status();
  v1::Job job = *ParseJob(text, "job");
  job.mutable_model()->set_vocabulary(data->vocabulary_size());
  const NamedRows named(job, *data);
  using Replicas = std::vector<uint32_t>;
  const std::vector<std::vector<Replicas>> owned = {{{0, 1, 2}}, {{0, 1}, {2}}};
  for (const std::vector<Replicas>& by_worker : owned) {
    const LocalClusterResult result =
        Run(text, /*servers=*/2, static_cast<int>(by_worker.size()), 1);
    const ModelPlan plan = MakeModelPlan(job);
    int tables = 0;
    int64_t twice = 0;
    for (const ShardSpec& shard : plan.shards) {
      if (shard.kind != ShardKind::kTable) continue;
      ++tables;
      const auto rows_of = [&](const std::set<int32_t>& words) {
        return std::distance(
            words.lower_bound(static_cast<int32_t>(shard.first_row)),
            words.lower_bound(static_cast<int32_t>(shard.first_row + shard.rows)));
      };
      const std::string table =
          shard.table == Table::kEmbedding ? "embedding" : "softmax";
      int64_t pulled = 0, pushed = 0, evaluated = 0;
      for (int step = 0; step < kSteps; ++step) {
        pushed += rows_of(named.OfStep(table, step, {0, 1, 2}));
        for (const Replicas& replicas : by_worker) {
          pulled += rows_of(named.OfStep(table, step, replicas));
        }
      }
      // That of the first checkpoint is before the last step. It pulls no row of the softmax.
      for (const Replicas& replicas : by_worker) {
        if (table == "softmax") continue;
        for (const auto& words : named.OfEvaluation(TextSplit::kValidation, replicas)) {
          evaluated += rows_of(words);
        }
      }
      const v1::ShardStatus& status = result.shards.at(shard.id);
      EXPECT_EQ(status.version(), uint64_t{kSteps});
      EXPECT_EQ(status.rows_pulled(), static_cast<uint64_t>(pulled)) << shard.id;
      EXPECT_EQ(status.rows_pushed(), static_cast<uint64_t>(pushed)) << shard.id;
      EXPECT_EQ(status.evaluation_rows_pulled(), static_cast<uint64_t>(evaluated))
          << shard.id;
      twice += pulled - pushed;
    }
    EXPECT_EQ(tables, 6);
    if (by_worker.size() == 1) {
      EXPECT_EQ(twice, 0);
    } else {
      EXPECT_GT(twice, 0);
    }
  }
}

TEST_F(TablesTest, LearnsNearlyAsWithTheFullSoftmax) {
  const auto perplexity = [&](const std::string& tables) {
    return Run(JobText(tables, kAdam, 120), 1, 1, 2).test_perplexity;
  };
  const double full = perplexity("");
  const double sampled = perplexity(kTables);
  RecordProperty("full", std::to_string(full));
  RecordProperty("sampled", std::to_string(sampled));
  EXPECT_LT(sampled, 1.1 * full);
}

}  // namespace
}  // namespace moe
